"""Tokens a second of training a LLaMA-shaped model in bfloat16, beside Hugging Face's Trainer and a minimal loop.

The limit is the processor's bfloat16 product, probed just before each of our runs: `limit_share` is model FLOPs
utilization. Data is random tokens in memory, the same amount for all, one document a row.

    python benchmarks/train_throughput.py [--quick] [--save] [--compiled]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from typing import Any

from interleaved import HERE, PEERS, Contestant, arguments, finish, in_turn, row, running

SHAPES = {
    "10M": {"hidden": 256, "layers": 10, "heads": 4, "intermediate": 704, "vocab": 8192},
    "30M": {"hidden": 512, "layers": 8, "heads": 8, "intermediate": 1408, "vocab": 8192},
}
THREADS = 2
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(THREADS)}


def contestants(*, compiled: bool) -> list[Contestant]:
    """Ours first."""
    ours = Contestant("ours", [sys.executable, str(HERE / "our_train_worker.py"), str(THREADS)], QUIET)
    peers = [_peer("Trainer", "trainer"), _peer("minimal loop", "loop")]
    if compiled:
        peers += [
            _peer("Trainer, compiled", "trainer", "compiled"),
            _peer("minimal loop, compiled", "loop", "compiled"),
        ]
    return [ours, *peers]


def _peer(name: str, *words: str) -> Contestant:
    return Contestant(name, [str(PEERS), str(HERE / "peers" / "train_worker.py"), str(THREADS), *words], QUIET)


def measure(
    shapes: list[str], batch: int, steps: int, rounds: int, *, sequence: int, compiled: bool
) -> Iterator[dict[str, Any]]:
    """Two rows for every shape: tokens a second and peak memory."""
    cases = [{"case": shape, **SHAPES[shape], "sequence": sequence, "batch": batch, "steps": steps} for shape in shapes]
    own, *peers = everyone = contestants(compiled=compiled)
    with running(everyone):
        answers = in_turn(everyone, cases, rounds, warm_up=cases[:1])  # nobody's first step is counted
    for case in cases:
        name = case["case"]
        rates = {c.name: [a["tokens"] / a["seconds"] for a in answers[c.name, name]] for c in everyone}
        memory = {c.name: [a["peak_bytes"] / 2**20 for a in answers[c.name, name]] for c in everyone}
        share = statistics.median(
            a["flops_per_token"] * a["tokens"] / a["seconds"] / a["peak_flops"] for a in answers[own.name, name]
        )
        theirs = {peer.name: rates[peer.name] for peer in peers}
        yield row(f"{name}, speed", rates[own.name], "tokens/s", theirs, share)
        theirs = {peer.name: memory[peer.name] for peer in peers}
        yield row(f"{name}, memory of the process", memory[own.name], "MiB", theirs, None, less_is_better=True)


def main() -> None:
    """Measure, show, and print the report as one line of JSON."""
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--compiled", action="store_true", help="also the peers under torch.compile, which takes long")
    options = parser.parse_args()
    shapes = ["10M"] if options.quick else list(SHAPES)
    batch, sequence, steps, rounds = (4, 256, 2, 1) if options.quick else (16, 512, 6, 5)
    rows = measure(shapes, batch, steps, options.rounds or rounds, sequence=sequence, compiled=options.compiled)
    finish("train_throughput", list(rows), save=options.save)


if __name__ == "__main__":
    main()
