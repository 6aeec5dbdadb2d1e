"""Server-sent events as OpenAI frames them: `data: JSON`, a blank line, and `[DONE]` at the end. Knows no schema."""

from __future__ import annotations

DONE = "data: [DONE]\n\n"


def event(data: str) -> str:
    """Frame one JSON document, which must not hold raw line breaks (JSON on one line never does)."""
    assert not {"\n", "\r"} & set(data)
    return f"data: {data}\n\n"
