"""Seconds from starting a process to its first token: servers, and libraries in a script.

The files of models and programs lie in the system's memory, as on a second start. Ours is measured twice: with its
caches (compiled operations, packed weights), and with both empty, when operations are compiled first.

    python benchmarks/startup.py [--quick] [--save] [--model FILE.gguf]
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints import Checkpoints
from contestants import QUIET
from interleaved import MOST_COMPLAINT, PEERS, Runs, arguments, finish, in_turn, row
from load_client import post
from servers import MODEL, PATIENCE, Server, llama_server, our_server

CACHED = "--engine.weights-on-disk=cached"
WARM, COLD = "ours", "ours, caches empty"
OUR_SCRIPT = """
import sys
from lmworks.engine import LLM
from lmworks.core.sampling import SamplingParams
LLM(sys.argv[1], weights_on_disk="cached").generate([[1, 2, 3]], SamplingParams(max_tokens=1))
"""
TRANSFORMERS_SCRIPT = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=1, do_sample=False)
"""


@dataclass
class Script:
    """A Python program that ends after its first token."""

    name: str
    python: str
    source: str
    model: str
    fresh_caches: bool = False

    def start(self) -> None:
        """Nothing: starting is what is measured."""

    def run(self, case: Mapping[str, Any]) -> dict[str, float]:
        """Run the program once."""
        with tempfile.TemporaryDirectory() as empty:
            environment = os.environ | QUIET | ({"LMWORKS_CACHE": empty} if self.fresh_caches else {})
            begin = time.perf_counter()
            command = [self.python, "-c", self.source, self.model]
            done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
            seconds = time.perf_counter() - begin
        if done.returncode:
            raise RuntimeError(f"{self.name} ended with status {done.returncode}: {done.stderr[-MOST_COMPLAINT:]}")
        return {"seconds": seconds}

    def stop(self) -> None:
        """Nothing is left."""


@dataclass
class Started:
    """A server that is started anew every time."""

    name: str
    server: Server
    fresh_caches: bool = False

    def start(self) -> None:
        """Nothing: starting is what is measured."""

    def run(self, case: Mapping[str, Any]) -> dict[str, float]:
        """Start the server, ask until it answers with a token, and stop it."""
        with tempfile.TemporaryDirectory() as empty:
            self.server.environment = {"LMWORKS_CACHE": empty} if self.fresh_caches else {}
            begin = time.perf_counter()
            self.server.spawn()
            try:
                while not asyncio.run(self._answers()):
                    self.server.check()
                    if time.perf_counter() - begin > PATIENCE:
                        raise RuntimeError(f"{self.name} gave no token within {PATIENCE:.0f} seconds")
                    time.sleep(0.02)
                return {"seconds": time.perf_counter() - begin}
            finally:
                self.server.stop()

    async def _answers(self) -> bool:
        body = {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 1, "stream": True}
        try:
            async for line in post(self.server.port, "/v1/completions", body):
                if line.startswith(b"data: {") and b'"choices"' in line:
                    return True
        except (OSError, EOFError, RuntimeError, ValueError):
            return False
        return False

    def stop(self) -> None:
        """Nothing is left."""


def main() -> None:
    """Measure, show, and print the report as one line of JSON."""
    options = arguments(__doc__.split("\n")[0]).parse_args()
    checkpoints = Checkpoints(options.model)
    file, folder = checkpoints.gguf("Q8_0"), checkpoints.folder()
    llama, transformers = "llama.cpp server", "transformers bf16"
    own, peers = ("server", llama), ("script", transformers)
    contestants: list[Runs] = [
        Started(f"{WARM} server", our_server(file, CACHED)),
        Started(llama, llama_server(file, threads=2)),
        Script(f"{WARM} script", sys.executable, OUR_SCRIPT, file),
        Script(transformers, str(PEERS), TRANSFORMERS_SCRIPT, folder),
    ]
    empty: list[Runs] = [
        Started(f"{COLD} server", our_server(file, CACHED), fresh_caches=True),
        Script(f"{COLD} script", sys.executable, OUR_SCRIPT, file, fresh_caches=True),
    ]
    case = {"case": "first token"}
    rounds = options.rounds or (1 if options.quick else 7)
    answers = in_turn(contestants, [case], rounds)
    if not options.quick:  # compiling takes a minute
        answers |= in_turn(empty, [case], 1)
    seconds = {name: [answer["seconds"] for answer in found] for (name, _), found in answers.items()}
    rows = [
        row(f"{which} {kind}", seconds[f"{which} {kind}"], "s", {peer: seconds[peer]}, None, less_is_better=True)
        for which in (WARM, COLD)
        for kind, peer in (own, peers)
        if f"{which} {kind}" in seconds
    ]
    finish("startup", rows, save=options.save)


if __name__ == "__main__":
    main()
