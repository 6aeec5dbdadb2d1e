"""Peak memory and time to the first step of training with large vocabularies, beside Trainer and a minimal loop.

Every case is a process of its own: one step that is not counted and one that is, on 4,096 tokens in bfloat16, of a
model that is small beside its vocabulary. What grows with the vocabulary is the head: logits and their gradient.

    python benchmarks/train_memory.py [--quick] [--save] [--rounds N]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from interleaved import arguments, finish, in_turn, row, running
from train_throughput import contestants

VOCABULARIES = (32_768, 65_536, 131_072)
MODEL = {"hidden": 256, "layers": 4, "heads": 4, "intermediate": 704}
DATA = {"sequence": 512, "batch": 8, "steps": 1}


def measure(vocabularies: Sequence[int], rounds: int) -> Iterator[dict[str, Any]]:
    """Two rows for every vocabulary: peak memory of the process, and seconds to the end of its first step."""
    for vocabulary in vocabularies:
        name = f"vocabulary {vocabulary:,}"
        memory: dict[str, list[float]] = {}
        first: dict[str, list[float]] = {}
        for _ in range(rounds):
            everyone = contestants(compiled=False)
            with running(everyone):
                case = {"case": name, **MODEL, **DATA, "vocab": vocabulary}
                answers = in_turn(everyone, [case], 1, warm_up=[])
            for contestant in everyone:
                (answer,) = answers[contestant.name, name]
                memory.setdefault(contestant.name, []).append(answer["peak_bytes"] / 2**20)
                first.setdefault(contestant.name, []).append(answer["first_step_seconds"])
        yield _row(f"{name}, memory of the process", memory, "MiB")
        yield _row(f"{name}, time to first step", first, "s")


def _row(case: str, samples: dict[str, list[float]], unit: str) -> dict[str, Any]:
    theirs = {name: values for name, values in samples.items() if name != "ours"}
    return row(case, samples["ours"], unit, theirs, None, less_is_better=True)


def main() -> None:
    """Measure, show, and print the report as one line of JSON."""
    options = arguments(__doc__.split("\n")[0]).parse_args()
    vocabularies = VOCABULARIES[:1] if options.quick else VOCABULARIES
    rows = measure(vocabularies, options.rounds or (1 if options.quick else 3))
    finish("train_memory", list(rows), save=options.save)


if __name__ == "__main__":
    main()
