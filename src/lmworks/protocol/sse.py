"""Server-sent events as OpenAI frames them: `data: JSON`, a blank line, and `[DONE]` at the end. Knows no schema."""

from __future__ import annotations

DONE = "data: [DONE]\n\n"


def event(data: str, name: str = "") -> str:
    """Frame one JSON document, which must not hold raw line breaks (JSON on one line never does).

    Args:
        data: the document.
        name: of the event, for endpoints that name theirs.
    """
    assert "\n" not in data, data
    assert "\r" not in data, data
    return f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n"
