"""What a tokenizer is, as data: the common form between folders, GGUF files and training. Knows no algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TokenizerDefinition:
    """Everything a tokenizer folder holds."""

    spec: Mapping[str, Any]
    """The content of `tokenizer.json`, the `tokenizers` library's own format."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The content of `tokenizer_config.json`, without the chat template."""
    chat_template: str | None = None
    """Jinja source."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a generation besides `config["eos_token"]`, as `generation_config.json` lists them."""


def token_text(value: object) -> str | None:
    """The text of a special token, which configurations write as a string or as `{"content": ...}`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def added_token(token_id: int, content: str, special: bool = True) -> dict[str, Any]:
    """An entry of `added_tokens`."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **flags, "special": special}


def template(before: Sequence[str], after: Sequence[str], vocab: Mapping[str, int]) -> dict[str, Any]:
    """The post-processor that puts special tokens before and after a text; a second text is followed by `after`."""
    opening, closing = ([{"SpecialToken": {"id": t, "type_id": 0}} for t in tokens] for tokens in (before, after))
    single = [*opening, {"Sequence": {"id": "A", "type_id": 0}}, *closing]
    second = [{"SpecialToken": {"id": t, "type_id": 1}} for t in after]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}, *second],
        "special_tokens": {t: {"id": t, "ids": [vocab[t]], "tokens": [t]} for t in (*before, *after)},
    }
