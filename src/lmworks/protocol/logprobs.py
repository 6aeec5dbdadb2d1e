"""Log-probabilities in OpenAI's two shapes: a list of tokens (chat) and parallel lists (text completions).

Knows no tokenizer: the caller passes a function from token id to bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lmworks.core.generation import TokenLogprob
from lmworks.protocol.wire import WireResponse

TokenBytes = Callable[[int], bytes]

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot write; OpenAI's own value."""


class TopLogprob(WireResponse):
    """One alternative at one place. `bytes` is there because a token may be part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TopLogprob):
    """One generated token with its likeliest alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(WireResponse):
    """`choices[].logprobs` of a chat completion."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionLogprobs(WireResponse):
    """`choices[].logprobs` of a text completion: lists of equal length, one place per token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]
    """Where each token begins in the choice's text, in characters."""


def chat_logprobs(entries: Sequence[TokenLogprob], token_bytes: TokenBytes) -> ChatLogprobs:
    """Log-probabilities of generated tokens for a chat choice or chunk."""
    return ChatLogprobs(
        content=[
            ChatTokenLogprob(
                **_named(entry.token_id, entry.logprob, token_bytes).model_dump(),
                top_logprobs=[_named(token, logprob, token_bytes) for token, logprob in entry.top],
            )
            for entry in entries
        ]
    )


def completion_logprobs(entries: Sequence[TokenLogprob], token_bytes: TokenBytes, start: int = 0) -> CompletionLogprobs:
    """Log-probabilities for a text choice or chunk whose first token begins at character `start`."""
    tokens = [_text(token_bytes(entry.token_id)) for entry in entries]
    offsets = []
    for token in tokens:
        offsets.append(start)
        start += len(token)
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[_finite(entry.logprob) for entry in entries],
        top_logprobs=[{_text(token_bytes(t)): _finite(p) for t, p in entry.top} for entry in entries],
        text_offset=offsets,
    )


def _named(token_id: int, logprob: float, token_bytes: TokenBytes) -> TopLogprob:
    raw = token_bytes(token_id)
    return TopLogprob(token=_text(raw), logprob=_finite(logprob), bytes=list(raw))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST
