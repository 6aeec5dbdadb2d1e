"""Log-probabilities on the wire: a list of tokens (chat), parallel lists (text completions), vLLM's maps (prompts).

Knows no tokenizer: the caller passes a function from token id to bytes.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Container, Sequence

from lmworks.core.generation import TokenLogprob
from lmworks.protocol.wire import WireResponse

TokenBytes = Callable[[int], bytes]

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot write; OpenAI's own value."""

TOKEN_ID = "token_id:{}"
"""A token's name where its text would be ambiguous; vLLM's own form."""


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
    """`choices[].logprobs` of a text completion: lists of equal length, one place per token.

    A text's first token has neither log-probability nor alternatives.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where each token begins in the choice's text, in characters."""


class PromptLogprob(WireResponse):
    """What vLLM tells of one token at one place of the prompt."""

    logprob: float
    rank: int | None
    """1 is the likeliest; unknown for a prompt's token that is not among the likeliest asked for."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""Per token of the prompt, token ids to their log-probabilities; None for the first."""


def chat_logprobs(
    entries: Sequence[TokenLogprob], token_bytes: TokenBytes, *, as_token_ids: bool = False
) -> ChatLogprobs:
    """Log-probabilities of generated tokens for a chat choice or chunk.

    Args:
        entries: of the tokens.
        token_bytes: a token's bytes.
        as_token_ids: name tokens by their ids.
    """

    def named(token_id: int, logprob: float) -> TopLogprob:
        raw = token_bytes(token_id)
        name = TOKEN_ID.format(token_id) if as_token_ids else _text(raw)
        return TopLogprob(token=name, logprob=_finite(logprob), bytes=list(raw))

    return ChatLogprobs(
        content=[
            ChatTokenLogprob(
                **named(entry.token_id, entry.logprob).model_dump(),
                top_logprobs=[named(token, logprob) for token, logprob in entry.top],
            )
            for entry in entries
        ]
    )


class LogprobLists:
    """Writes one text choice's tokens as parallel lists, chunk after chunk.

    Args:
        token_bytes: a token's bytes.
        hidden: tokens that are not part of the choice's text.
        as_token_ids: name tokens by their ids.
    """

    def __init__(self, token_bytes: TokenBytes, hidden: Container[int] = (), *, as_token_ids: bool = False) -> None:
        self._token_bytes, self._hidden, self._as_token_ids = token_bytes, hidden, as_token_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def add(self, tokens: Sequence[int], entries: Sequence[TokenLogprob | None]) -> CompletionLogprobs:
        """The next tokens of the text, with what is known of each."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            if token not in self._hidden:
                self._offset += len(self._decoder.decode(self._token_bytes(token)))
        return CompletionLogprobs(
            tokens=[self._name(token) for token in tokens],
            token_logprobs=[None if entry is None else _finite(entry.logprob) for entry in entries],
            top_logprobs=[None if entry is None else self._alternatives(entry) for entry in entries],
            text_offset=offsets,
        )

    def _alternatives(self, entry: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens, and the one that is there."""
        return {self._name(token): _finite(logprob) for token, logprob in (*entry.top, (entry.token_id, entry.logprob))}

    def _name(self, token: int) -> str:
        """A token as text, or as OpenAI writes parts of characters, so that no two of them share a name."""
        if self._as_token_ids:
            return TOKEN_ID.format(token)
        raw = self._token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def prompt_logprobs(entries: Sequence[TokenLogprob | None], token_bytes: TokenBytes) -> PromptLogprobs:
    """An extra of vLLM's: each place's token and its alternatives by token id."""

    def known(token: int, logprob: float, rank: int | None) -> PromptLogprob:
        return PromptLogprob(logprob=_finite(logprob), rank=rank, decoded_token=_text(token_bytes(token)))

    return [
        None
        if entry is None
        else {str(entry.token_id): known(entry.token_id, entry.logprob, None)}
        | {str(token): known(token, logprob, rank) for rank, (token, logprob) in enumerate(entry.top, 1)}
        for entry in entries
    ]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST
