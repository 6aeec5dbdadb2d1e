"""Text to prompt tokens: what surrounds a prompt, and where a continuation begins. Knows no engine."""

from __future__ import annotations

from lmworks.core.errors import RequestError
from lmworks.tokenization import Tokenizer


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a prompt to be continued.

    Where the tokenizer begins texts with `bos`, as in training, so does the prompt. An empty prompt is the
    beginning of a document alone.

    Raises:
        RequestError: the prompt is empty and the tokenizer has no beginning of a document.
    """
    ids = tokenizer.encode(text)
    if not ids:
        return [beginning(tokenizer)]
    return [beginning(tokenizer), *ids] if tokenizer.adds_bos else ids


def beginning(tokenizer: Tokenizer) -> int:
    """The token that stands before a document: `bos`, or `eos` where there is no `bos`.

    Raises:
        RequestError: there is neither.
    """
    for token in (tokenizer.bos_token_id, *tokenizer.eos_token_ids):
        if token is not None:
            return token
    raise RequestError("the prompt is empty and the tokenizer has no token for a document's beginning", "Give a prompt")


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of a context and of its continuation, encoded together as lm-evaluation-harness does.

    Spaces at the context's end belong to the continuation, where training put them. The continuation is what
    the joint encoding adds to the context's own; should a token span the border so that nothing is added,
    the continuation is encoded by itself.

    Raises:
        RequestError: the continuation is empty.
    """
    if not continuation:
        raise RequestError("a continuation to be scored is empty", "Give at least one character")
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if not stripped:
        return [beginning(tokenizer)], tokenizer.encode(continuation)
    before = encode_prompt(tokenizer, stripped)
    return before, encode_prompt(tokenizer, stripped + continuation)[len(before) :] or tokenizer.encode(continuation)
