"""Chat messages as values, the same for data, templates, engine and wire. Knows no template and no HTTP."""

from __future__ import annotations

from typing import Any, Literal

from lmworks.core.config import Config

Role = Literal["system", "user", "assistant", "tool"]


class Message(Config):
    """One turn of a conversation."""

    role: Role
    content: str
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    """What the assistant thought before it answered."""

    def to_template(self) -> dict[str, Any]:
        """The mapping a chat template sees: absent fields are absent."""
        return self.model_dump(exclude_none=True)
