"""The matrix of parallel training as a page: a row per form, a column per objective. Knows no measurement."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch

from lmworks.core.code_version import code_version
from lmworks.proofs.parallel import BOUND, SPLITS, ParallelRow
from lmworks.proofs.parallel_forms import FORMS, RANKS
from lmworks.proofs.row import Row

INTRODUCTION = """# Parallel training against one process

Written by `lmworks prove parallel{long} --write docs/parallel.md`: each cell is one step on {ranks} gloo processes in
float32, of tiny models over documents of unequal length. It shows ‖difference‖ / ‖gradient‖ over all parameters as
one vector, or the relative difference of the loss where that is larger. Bound {bound:g}. A letter stands for a
refusal, before anything starts; the reasons are below. The number behind a schedule is that of micro-batches. Under EP
every feed-forward net is a mixture of eight experts; a pipeline's model has a layer for each stage.
"""


def parallel_page(rows: Sequence[Row], *, long: bool) -> str:
    """Markdown of a proof's rows."""
    measured = [row for row in rows if isinstance(row, ParallelRow)]
    objectives = list(dict.fromkeys(row.objective for row in measured))
    reasons = list(dict.fromkeys(row.note for row in measured if row.gradient is None))
    letters = {reason: chr(ord("a") + index) for index, reason in enumerate(reasons)}
    cells = {(row.form, row.objective): _cell(row, letters) for row in measured}
    lines = [
        INTRODUCTION.format(ranks=RANKS, bound=BOUND, long=" --long" if long else ""),
        "| form | " + " | ".join(objectives) + " |",
        "|---|" + "---|" * len(objectives),
    ]
    for form in (SPLITS, *FORMS):
        lines.append(f"| {form} | " + " | ".join(cells.get((form, o), "–") for o in objectives) + " |")
    lines += ["", "A dash stands where a pair is not measured; `--long` measures all.", ""]
    lines += [f"- **{letter}**: {reason.removeprefix('refused: ')}." for reason, letter in letters.items()]
    lines += ["", "| replicas after an update | value | bound |", "|---|---|---|"]
    lines += [f"| {r.case} | {r.value:.0f} | {r.rule} {r.bound:.0f} |" for r in rows if not isinstance(r, ParallelRow)]
    version = f"torch {torch.__version__}, Python {platform.python_version()}"
    lines += ["", f"Measured with {code_version(__name__)} on {platform.machine()}, {version}.", ""]
    return "\n".join(lines)


def _cell(row: ParallelRow, letters: dict[str, str]) -> str:
    """A gap as short as it is meant, or the letter of a refusal; what breaks its bound stands out."""
    shown = letters[row.note] if row.gradient is None else f"{max(row.gradient, row.loss or 0.0):.0e}"
    return shown if row.ok else f"**{shown}**"
