"""How models mark what they think before they answer: one table. Knows no tools and no engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReasoningFormat:
    """Markers around a model's thoughts."""

    name: str
    begin: str
    end: str
    anywhere: bool = False
    """Thoughts may come again after the answer began; else only at its beginning."""
    silent: tuple[str, ...] = ()
    """Markers that are part of no text."""
    between: str = ""
    """What stands between thoughts and answer beside whitespace."""


_FORMATS = (
    ReasoningFormat("think", "<think>", "</think>"),
    ReasoningFormat("thinking", "<thinking>", "</thinking>"),
    ReasoningFormat("reasoning", "<reasoning>", "</reasoning>"),
    ReasoningFormat("mistral", "[THINK]", "[/THINK]"),
    ReasoningFormat("seed", "<seed:think>", "</seed:think>"),
    ReasoningFormat("cohere", "<|START_THINKING|>", "<|END_THINKING|>",
                    silent=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")),
    ReasoningFormat("granite", "Here is my thought process:", "Here is my response:"),
    ReasoningFormat("gpt_oss", "<|channel|>analysis<|message|>", "<|end|>", anywhere=True,
                    silent=("<|start|>assistant", "<|channel|>final<|message|>", "<|channel|>commentary<|message|>",
                            "<|end|>", "<|return|>"), between="<|start|>assistant"),
)  # fmt: skip

REASONING_FORMATS: dict[str, ReasoningFormat] = {f.name: f for f in _FORMATS}


def detect_reasoning_format(chat_template: str | None) -> ReasoningFormat | None:
    """The format whose markers a chat template writes, or None."""
    if not chat_template:
        return None
    if "<|channel|>analysis" in chat_template or ("<|channel|>" in chat_template and "analysis" in chat_template):
        return REASONING_FORMATS["gpt_oss"]
    # Phi's templates, too, end every turn with gpt-oss' marker.
    return next((f for f in _FORMATS if f.name != "gpt_oss" and f.end in chat_template), None)


def starts_in_reasoning(prompt: str, reasoning_format: ReasoningFormat | None) -> bool:
    """Whether a rendered prompt leaves the model in the middle of its thoughts: opened, and not closed.

    A template that switches thinking off closes what it opened, so what follows is the answer.
    """
    if reasoning_format is None:
        return False
    return prompt.rstrip().endswith(reasoning_format.begin)
