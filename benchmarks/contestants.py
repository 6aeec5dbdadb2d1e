"""Who takes part: our engine and its peers, each as a process around one model. Knows no case."""

from __future__ import annotations

import sys

from interleaved import HERE, PEERS, Contestant

QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def ours(name: str, model: str, threads: int) -> Contestant:
    """Our engine; weights stay as the file has them."""
    return Contestant(name, [sys.executable, str(HERE / "our_worker.py"), model, str(threads)])


def llama_cpp(name: str, gguf: str, threads: int) -> Contestant:
    """llama.cpp's library."""
    return _peer(name, "llama_cpp", gguf, threads)


def transformers(folder: str, threads: int) -> Contestant:
    """The library transformers in bfloat16."""
    return _peer("transformers bf16", "transformers", folder, threads)


def ctranslate2(folder: str, threads: int) -> Contestant:
    """CTranslate2 with int8 weights."""
    return _peer("CTranslate2 int8", "ctranslate2", folder, threads)


def _peer(name: str, library: str, model: str, threads: int) -> Contestant:
    worker = str(HERE / "peers" / f"{library}_worker.py")
    return Contestant(name, [str(PEERS), worker, model, str(threads)], QUIET | {"OMP_NUM_THREADS": str(threads)})
