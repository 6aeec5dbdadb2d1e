"""Task `bits-per-byte`: held-out documents of the corpus, scored whole."""

from __future__ import annotations

from lmworks.evals.choosing import choose
from lmworks.evals.task import Inputs, Passage, Task


def build(inputs: Inputs, limit: int, seed: int) -> list[Passage]:
    """Up to `limit` held-out documents, chosen by the seed."""
    return [Passage(d.text) for d in choose([d for d in inputs.validation if d.text], limit, seed)]


TASK = Task(
    name="bits-per-byte",
    about="Bits per UTF-8 byte of held-out documents (text only, no end of document); lower is better.",
    kind="loglikelihood_rolling",
    needs="a corpus with a non-empty validation split",
    build=build,
    limit=250,
)
