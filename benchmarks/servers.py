"""HTTP servers that take part: ours and peers', each a process on a port of its own. Knows no load."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from interleaved import HERE, MOST_COMPLAINT, PEERS, Contestant

MODEL = "model"
"""What every server calls it."""
STREAMS = 64
"""That a server is told to compute at a time."""
LLAMA_CONTEXT = 32_768
"""Tokens of llama.cpp's cache, for all streams together."""
PATIENCE = 300.0
"""Seconds until a server must be ready."""


@dataclass
class Server:
    """A server process, loaded by a client process of its own.

    Args:
        name: of the contestant.
        command: `{port}` is replaced.
        environment: beyond this process's.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _said: IO[bytes] | None = None

    def __post_init__(self) -> None:
        self._client = Contestant(f"client of {self.name}", [sys.executable, str(HERE / "load_client.py")])

    def spawn(self) -> None:
        """Start the process, and wait for nothing."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [word.format(port=self.port) for word in self.command]
        environment = os.environ | dict(self.environment)
        self._said = TemporaryFile()  # noqa: SIM115 - `stop` closes it
        self._process = subprocess.Popen(command, env=environment, stdout=self._said, stderr=subprocess.STDOUT)

    def start(self) -> None:
        """Start the process and its client, and wait until it is ready."""
        self.spawn()
        self._client.start()
        self.wait(f"http://127.0.0.1:{self.port}/health", PATIENCE)

    def wait(self, url: str, seconds: float) -> None:
        """Return once the address answers 200.

        Raises:
            RuntimeError: the process ended, or so many seconds passed.
        """
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self.check()
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise RuntimeError(f"{self.name} was not ready within {seconds:.0f} seconds")

    def check(self) -> None:
        """Raise a `RuntimeError` with the last words of a process that ended."""
        assert self._process is not None, "spawned first"
        assert self._said is not None, "spawned first"
        if self._process.poll() is not None:
            self._said.seek(0)
            words = self._said.read()[-MOST_COMPLAINT:].decode(errors="replace")
            raise RuntimeError(f"{self.name} ended with status {self._process.returncode}: {words}")

    def run(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """Load the server; see `load_client.py`."""
        return self._client.run({**case, "port": self.port, "model": MODEL})

    def stop(self) -> None:
        """End both processes."""
        self._client.stop()
        if self._process is not None:
            assert self._said is not None, "opened with the process"
            self._process.terminate()
            self._process.wait()
            self._said.close()


def our_server(model: str, *options: str, name: str = "ours", **environment: str) -> Server:
    """`lmworks serve`."""
    words = ["serve", "--models", f"{MODEL}={model}", "--port", "{port}", "--engine.max-num-seqs", str(STREAMS)]
    return Server(name, [sys.executable, "-m", "lmworks", *words, *options], environment)


def llama_server(gguf: str, threads: int) -> Server:
    """llama.cpp's own server, with continuous batching and its prompt cache.

    Raises:
        RuntimeError: it is not installed.
    """
    binary = PEERS.parent / "llama-server"
    if not binary.exists():
        raise RuntimeError(f"there is no {binary}; run: make peers")
    number = str(threads)
    words = ["--threads", number, "--threads-batch", number, "--parallel", str(STREAMS), "--kv-unified"]
    words += ["--ctx-size", str(LLAMA_CONTEXT), "--alias", MODEL, "--host", "127.0.0.1", "--port", "{port}"]
    return Server(f"llama.cpp server, threads: {threads}", [str(binary), "--model", gguf, *words])


def vllm_server(folder: str) -> Server:
    """The CPU build of vLLM in bfloat16 with two threads.

    Raises:
        RuntimeError: it is not installed.
    """
    python = Path(os.environ.get("LMWORKS_VLLM", HERE.parent / ".vllm")) / "bin" / "python"
    if not python.exists():
        raise RuntimeError(f"there is no {python}; see benchmarks/README.md")
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--served-model-name", MODEL]
    words += ["--dtype", "bfloat16", "--max-num-seqs", str(STREAMS), "--max-model-len", "2048", "--port", "{port}"]
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
    threads = {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "OMP_NUM_THREADS": "2"}  # by itself it leaves one of two cores out
    return Server("vLLM CPU bf16", [str(python), *words], offline | threads)
