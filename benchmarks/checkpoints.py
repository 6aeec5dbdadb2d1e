"""One model in every form that a contestant reads, each made once and kept. Knows no benchmark.

All forms come from one GGUF file: those of llama.cpp by its own quantizer, so that both sides read the same numbers in
the same file; the folder by our reader and writer; CTranslate2's by its own converter from that folder.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from interleaved import HERE, PEERS

from lmworks.core.lineage import content_hash
from lmworks.data.acquisition.fetch import FetchConfig, fetch
from lmworks.kernels.native.library import cache_folder
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.tokenization import load_tokenizer

SOURCE = "smollm2-135m-instruct"
FTYPES = {"Q8_0": 7, "Q4_0": 2, "BF16": 32}
"""llama.cpp's numbers of file types."""


class Checkpoints:
    """The forms of one model.

    Args:
        model: a GGUF file; None takes SmolLM2-135M-Instruct, fetched when first needed.
    """

    def __init__(self, model: Path | None) -> None:
        kept = cache_folder() / "benchmarks"
        if model is None:
            folder = kept / SOURCE
            if not folder.exists():
                fetch(FetchConfig(name=SOURCE, output=folder))
            model = next(folder.glob("*.gguf"))
        self.source = model
        self._folder = kept / f"{model.stem}-{content_hash(model)[:12]}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def gguf(self, ftype: str) -> str:
        """The file whose matrices are all of that type, the head's too.

        Args:
            ftype: one of `FTYPES`.
        """

        def make(path: Path) -> None:
            quantize = [PEERS, HERE / "peers/quantize.py", self.source, path, FTYPES[ftype]]
            subprocess.run([str(word) for word in quantize], check=True, capture_output=True)

        return self._made(f"{ftype}.gguf", make)

    def folder(self) -> str:
        """A Hugging Face folder in bfloat16."""

        def make(path: Path) -> None:
            save_pretrained(load_pretrained(self.source, dtype=torch.bfloat16), path)
            load_tokenizer(self.source).save(path)

        return self._made("hf", make)

    def ctranslate2(self) -> str:
        """CTranslate2's folder with int8 weights."""

        def make(path: Path) -> None:
            words = ["--model", self.folder(), "--output_dir", str(path), "--quantization", "int8"]
            convert = [str(PEERS), "-m", "ctranslate2.converters.transformers", *words]
            subprocess.run(convert, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})

        return self._made("ctranslate2", make)

    def _made(self, name: str, make: Callable[[Path], None]) -> str:
        path = self._folder / name
        if not path.exists():
            with TemporaryDirectory(dir=self._folder) as unfinished:
                make(Path(unfinished) / name)
                (Path(unfinished) / name).rename(path)
        return str(path)
