"""What a task is: a row that says where its items come from, how they are put to a model and what is counted.

Knows no particular task, no statistics, and models only as `Generator` and `Scorer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from lmworks.core.generation import Document, Generator, Scorer
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams


class Model(Generator, Scorer, Protocol):
    """What is evaluated: it generates and it scores."""


@dataclass(frozen=True)
class Passage:
    """A document to be scored whole."""

    text: str


@dataclass(frozen=True)
class Question:
    """A context and its possible continuations, of which `choices[answer]` is right."""

    context: str
    choices: tuple[str, ...]
    """Each begins with the space that parts it from the context."""
    answer: int


@dataclass(frozen=True)
class Prompt:
    """Something to answer by generation: text to continue, or a conversation to reply to."""

    text: str | tuple[Message, ...]
    references: tuple[str, ...] = ()
    """Right answers, for tasks that have them."""


Item = Passage | Question | Prompt


@dataclass(frozen=True)
class Sample:
    """One generated answer."""

    prompt: str
    answer: str
    finish_reason: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What one model did on a task's items, in their order."""

    figures: Mapping[str, tuple[float, ...]]
    """Metric name to one figure per item."""
    sizes: tuple[float, ...] | None = None
    """What the figures are divided by, such as bytes; None means one each."""
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """What tasks may be built from. A task whose input is empty has no items and is reported as skipped."""

    train: Sequence[Document]
    validation: Sequence[Document]
    conversations: Sequence[Sequence[Message]] = ()
    """Held-out conversations."""
    questions: Sequence[Mapping[str, Any]] = ()
    """Rows with `question`, `passage`, `label` and `split`."""


Kind = Literal["loglikelihood_rolling", "multiple_choice", "generate_until"]


@dataclass(frozen=True)
class Task:
    """One row of the task table."""

    name: str
    about: str
    """One sentence for the report."""
    kind: Kind
    """How items are put to a model, by lm-evaluation-harness's names."""
    needs: str
    """What must be given for the task to have items, for the message when it was not."""
    build: Callable[[Inputs, int, int], list[Any]]
    """`(inputs, limit, seed)` to at most `limit` items; the same arguments give the same items."""
    limit: int
    """Items taken unless the configuration says otherwise; sized for a 5M-parameter model on one core."""
    grade: Callable[[Prompt, Sample], Mapping[str, float]] | None = None
    """For generation: an answer's figures by metric."""
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0, max_tokens=64))
    """For generation, where the configuration does not override it."""
    heldout: bool = True
    """False where items come from the training text on purpose."""
