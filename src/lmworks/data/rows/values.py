"""One value for each type of row that people tune on, with TRL's names for the types.

The content of a field is a text (the standard form) or messages (the conversational form). What a row holds beside
its type's fields is carried in `extra`, never dropped. Knows no file and no layout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from lmworks.core.messages import Message

Content = str | tuple[Message, ...]
Kind = Literal[
    "language_modeling", "prompt_only", "prompt_completion", "preference", "unpaired_preference", "stepwise_supervision"
]


class RowFault(ValueError):
    """What is wrong with one row.

    Args:
        rule: short name of the rule that it breaks, the same for all such rows.
        message: naming the value and, where it can be known, the remedy.
    """

    def __init__(self, rule: str, message: str) -> None:
        self.rule = rule
        super().__init__(message)


def read_label(value: object, field: str) -> bool:
    """Whether an answer or a step is good; numbers and words are refused, for what they mean differs.

    Raises:
        RowFault: it is neither true nor false.
    """
    if not isinstance(value, bool):
        raise RowFault("label", f"{field!r} is {value!r}, not true or false")
    return value


@dataclass(frozen=True, kw_only=True)
class Row(ABC):
    """Of any type."""

    kind: ClassVar[Kind]
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions that the assistant could call, in OpenAI's schema."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields, such as `id`, `source`, `language` or verl's `reward_model`."""

    @property
    @abstractmethod
    def contents(self) -> dict[str, Content]:
        """The fields that hold content, by name; those of a list are numbered."""

    @property
    def conversational(self) -> bool:
        """Whether the content is messages."""
        return any(isinstance(content, tuple) for content in self.contents.values())

    @property
    def asked(self) -> Content:
        """What the row asks, by which two rows are known to ask the same; empty where nothing tells."""
        return self.contents.get("prompt", "")


@dataclass(frozen=True)
class TextRow(Row):
    """A whole text (`text`) or a whole conversation (`messages`)."""

    kind: ClassVar[Kind] = "language_modeling"
    text: Content

    @property
    def contents(self) -> dict[str, Content]:
        """`text` or `messages`."""
        return {"text" if isinstance(self.text, str) else "messages": self.text}

    @property
    def asked(self) -> Content:
        """The turns before the first of the assistant; of a text nothing."""
        if isinstance(self.text, str):
            return ""
        first = next((n for n, turn in enumerate(self.text) if turn.role == "assistant"), len(self.text))
        return self.text[:first]


@dataclass(frozen=True)
class PromptRow(Row):
    """Something to be answered; the answers come from elsewhere."""

    kind: ClassVar[Kind] = "prompt_only"
    prompt: Content

    @property
    def contents(self) -> dict[str, Content]:
        """`prompt`."""
        return {"prompt": self.prompt}


@dataclass(frozen=True)
class CompletionRow(Row):
    """Something asked and the answer to learn."""

    kind: ClassVar[Kind] = "prompt_completion"
    prompt: Content
    completion: Content

    @property
    def contents(self) -> dict[str, Content]:
        """`prompt`, `completion`."""
        return {"prompt": self.prompt, "completion": self.completion}


@dataclass(frozen=True)
class PreferenceRow(Row):
    """Two answers, of which one is better. An implicit prompt (None) begins both of them."""

    kind: ClassVar[Kind] = "preference"
    prompt: Content | None
    chosen: Content
    rejected: Content

    @property
    def contents(self) -> dict[str, Content]:
        """`prompt` where it is explicit, `chosen`, `rejected`."""
        explicit: dict[str, Content] = {} if self.prompt is None else {"prompt": self.prompt}
        return {**explicit, "chosen": self.chosen, "rejected": self.rejected}

    @property
    def asked(self) -> Content:
        """The prompt, taken out of the answers where it is implicit."""
        if self.prompt is not None:
            return self.prompt
        return self.chosen[: shared(self.chosen, self.rejected)]


@dataclass(frozen=True)
class LabeledRow(Row):
    """One answer and whether it is desirable, as KTO learns from (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    kind: ClassVar[Kind] = "unpaired_preference"
    prompt: Content
    completion: Content
    label: bool

    @property
    def contents(self) -> dict[str, Content]:
        """`prompt`, `completion`."""
        return {"prompt": self.prompt, "completion": self.completion}


def labeled(turns: tuple[Message, ...], label: object, field: str, **common: Any) -> LabeledRow:
    """A whole conversation with a label, which is of its last turn.

    Args:
        turns: the prompt's and the answer.
        label: as the row gave it.
        field: its name, for messages.
        common: tools and further fields.

    Raises:
        RowFault: the label is none, or the last turn is no answer.
    """
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise RowFault("label", f"{field!r} is given, but the last turn is no answer to anything")
    return LabeledRow(turns[:-1], turns[-1:], read_label(label, field), **common)


@dataclass(frozen=True)
class StepwiseRow(Row):
    """The steps of one answer and whether each is right, as process reward models learn from."""

    kind: ClassVar[Kind] = "stepwise_supervision"
    prompt: Content
    completions: tuple[Content, ...]
    labels: tuple[bool, ...]

    @property
    def contents(self) -> dict[str, Content]:
        """`prompt` and each `completions[n]`."""
        steps = {f"completions[{number}]": step for number, step in enumerate(self.completions)}
        return {"prompt": self.prompt, **steps}


def shared(chosen: Content, rejected: Content) -> int:
    """How many leading turns (or characters) of two answers are the prompt that both begin with.

    Of texts that part in the middle of a line after a space, the space belongs to the answers, as TRL cuts. Equal
    answers share no more than all but their last turn, so that each keeps something.
    """
    least = min(len(chosen), len(rejected))
    same = next((n for n in range(least) if chosen[n] != rejected[n]), max(least - 1, 0))
    if isinstance(chosen, str) and same < least and same > 0 and chosen[same - 1] == " ":
        same -= 1
    return same
