"""Task `cloze`: which of four continuations belongs to the beginning of a held-out document?

The wrong three continue other held-out documents from a like place, so grammar and style do not tell, topic and
fluency do. Chance is one in four.
"""

from __future__ import annotations

import random

from lmworks.evals.choosing import choose
from lmworks.evals.task import Inputs, Question, Task

CHOICES = 4
CONTEXT = 200
"""Characters of context at most, and the least a document must have beside its continuation."""
CONTINUATION = 80
"""Characters of continuation, up to the end of a word."""


def build(inputs: Inputs, limit: int, seed: int) -> list[Question]:
    """Up to `limit` questions; none where fewer than four documents are long enough."""
    cut = [pair for pair in (_cut(d.text) for d in inputs.validation) if pair is not None]
    continuations = sorted({continuation for _, continuation in cut})
    if len(continuations) < CHOICES:
        return []
    generator = random.Random(seed)
    questions = []
    for context, right in choose(cut, limit, seed):
        wrong = generator.sample([c for c in continuations if c != right], CHOICES - 1)
        place = generator.randrange(CHOICES)
        questions.append(Question(context, (*wrong[:place], right, *wrong[place:]), place))
    return questions


def _cut(text: str) -> tuple[str, str] | None:
    """Context and continuation, parted before a space; None where the text is too short."""
    border = text.rfind(" ", 0, CONTEXT + 1)
    end = text.find(" ", border + CONTINUATION)
    if border < CONTEXT // 2 or end < 0:
        return None
    return text[:border], text[border:end]


TASK = Task(
    name="cloze",
    about="Which of four continuations belongs to a held-out document's beginning? Chance is 25 %.",
    kind="multiple_choice",
    needs="a corpus whose validation split has at least four documents of 300 characters",
    build=build,
    limit=80,
)
