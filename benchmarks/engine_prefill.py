"""Tokens a second of a prompt's computation, one prompt at a time, until its first token is chosen.

The limit is arithmetic: the operations of the prompt's matrix products and attention, over the rate of our own packed
product with many rows and a weight in caches, probed just before.

    python benchmarks/engine_prefill.py [--quick] [--save] [--model FILE.gguf]
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from checkpoints import FTYPES, Checkpoints
from contestants import ctranslate2, llama_cpp, ours, transformers
from interleaved import arguments, finish, in_turn, row, running

LENGTHS = (512, 4096)
THREADS = 2


def measure(checkpoints: Checkpoints, lengths: tuple[int, ...], rounds: int) -> Iterator[dict[str, Any]]:
    """A row for every format of ours and length, against all peers in all their formats."""
    cases = [{"case": f"{n:,} tokens", "batch": 1, "prompt": n, "tokens": 0} for n in lengths]
    own = [ours(ftype, checkpoints.gguf(ftype), THREADS) for ftype in FTYPES]
    peers = [llama_cpp(f"llama.cpp {ftype}", checkpoints.gguf(ftype), THREADS) for ftype in FTYPES]
    peers += [transformers(checkpoints.folder(), THREADS), ctranslate2(checkpoints.ctranslate2(), THREADS)]
    with running([*own, *peers]):
        answers = in_turn([*own, *peers], cases, rounds)
    rates = {
        (name, case["case"]): [case["prompt"] / answer["prefill_seconds"] for answer in answers[name, case["case"]]]
        for name in (contestant.name for contestant in (*own, *peers))
        for case in cases
    }
    for contestant in own:
        for case in cases:
            mine = contestant.name, case["case"]
            shares = [a["prefill_flops"] / a["prefill_seconds"] / a["peak_flops"] for a in answers[mine]]
            theirs = {peer.name: rates[peer.name, case["case"]] for peer in peers}
            yield row(", ".join(mine), rates[mine], "tokens/s", theirs, statistics.median(shares))


def main() -> None:
    """Measure, show, and print the report as one line of JSON."""
    options = arguments(__doc__.split("\n")[0]).parse_args()
    lengths, rounds = ((128, 512), 1) if options.quick else (LENGTHS, 7)
    rows = list(measure(Checkpoints(options.model), lengths, options.rounds or rounds))
    finish("engine_prefill", rows, save=options.save)


if __name__ == "__main__":
    main()
