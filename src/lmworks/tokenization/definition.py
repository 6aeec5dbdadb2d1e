"""What a tokenizer is, as data: the common form between folders, GGUF files and training. Knows no algorithm."""

from __future__ import annotations

from collections.abc import Mapping
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
