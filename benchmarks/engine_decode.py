"""Tokens a second while decoding, alone and in batches, from the same files as llama.cpp.

The limit is memory: weights and the cache's keys and values that a step reads, over the bandwidth probed just before.

    python benchmarks/engine_decode.py [--quick] [--save] [--model FILE.gguf]
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from checkpoints import FTYPES, Checkpoints
from contestants import llama_cpp, ours, transformers
from interleaved import arguments, finish, in_turn, row, running

BATCHES, QUICK_BATCHES = (1, 8, 32), (1, 8)
PROMPT = 64
THREADS = (2, 1)


def measure(checkpoints: Checkpoints, batches: tuple[int, ...], tokens: int, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for every format and batch."""
    cases = [{"case": f"batch {batch}", "batch": batch, "prompt": PROMPT, "tokens": tokens} for batch in batches]
    for ftype in FTYPES:
        file = checkpoints.gguf(ftype)
        own = [ours(f"ours, threads: {threads}", file, threads) for threads in THREADS]
        peers = [llama_cpp(f"llama.cpp {ftype}, threads: {threads}", file, threads) for threads in THREADS]
        peers.append(transformers(checkpoints.folder(), max(THREADS)))
        with running([*own, *peers]):
            answers = in_turn([*own, *peers], cases, rounds)
        for case in cases:
            name, batch = case["case"], case["batch"]
            rates = {
                contestant.name: [batch * tokens / answer["seconds"] for answer in answers[contestant.name, name]]
                for contestant in (*own, *peers)
            }
            shares = [
                tokens / answer["seconds"] * answer["bytes_per_step"] / answer["bandwidth"]
                for answer in answers[own[0].name, name]
            ]
            theirs = {peer.name: rates[peer.name] for peer in peers}
            told = row(f"{ftype}, {name}", rates[own[0].name], "tokens/s", theirs, statistics.median(shares))
            yield told | {"ours_1_thread": round(statistics.median(rates[own[1].name]), 2)}


def main() -> None:
    """Measure, show, and print the report as one line of JSON."""
    options = arguments(__doc__.split("\n")[0]).parse_args()
    batches, tokens, rounds = (QUICK_BATCHES, 16, 1) if options.quick else (BATCHES, 64, 9)
    rows = list(measure(Checkpoints(options.model), batches, tokens, options.rounds or rounds))
    finish("engine_decode", rows, save=options.save)


if __name__ == "__main__":
    main()
