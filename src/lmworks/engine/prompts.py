"""Text to prompt tokens: what surrounds a prompt, and where a continuation begins. Knows no engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import tokenizers

from lmworks.core.errors import RequestError
from lmworks.core.messages import Message
from lmworks.tokenization import Tokenizer


@dataclass(frozen=True)
class Prompts:
    """How one model is asked."""

    tokenizer: Tokenizer
    has_encoder: bool
    """What is asked goes to an encoder, whose texts are framed; else a decoder continues it."""

    def text(self, text: str) -> list[int]:
        """Tokens of a text; errors as in `encode_prompt` and `encode_source`."""
        return (encode_source if self.has_encoder else encode_prompt)(self.tokenizer, text)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        inputs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Tokens that ask for the assistant's next turn.

        A model with an encoder and without a chat template is asked what the user said last.

        Args:
            messages: the conversation.
            add_generation_prompt: open the assistant's turn.
            continue_final_message: instead, end with the last message's words, so that it is continued.
            inputs: `tools`, `documents` and switches for the template.

        Raises:
            TokenizerError: there is no chat template, or it refuses the conversation.
            RequestError: no message is the user's.
        """
        if self.has_encoder and self.tokenizer.chat_template is None:
            return self.text(last_user_message(messages))
        return self.tokenizer.encode_chat(
            messages,
            add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
            inputs=inputs,
        ).token_ids

    def room(self, prompt: Sequence[int], max_model_len: int) -> int:
        """Tokens a completion may have: the context less the prompt, or less the token that starts a decoder."""
        return max_model_len - (1 if self.has_encoder else len(prompt))

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of its continuation; errors as in `encode_pair`."""
        return (encode_source_pair if self.has_encoder else encode_pair)(self.tokenizer, context, continuation)


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


def encode_source(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text for an encoder, with what the tokenizer was trained to put around it.

    Raises:
        RequestError: that is nothing at all.
    """
    before, after = surroundings(tokenizer)
    ids = [*before, *tokenizer.encode(text), *after]
    if not ids:
        raise RequestError("the source is empty and the tokenizer puts nothing around it", "Give a source")
    return ids


@lru_cache(maxsize=8)
def surroundings(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that a tokenizer's post-processor puts before and after a text."""
    spec = {**tokenizer.definition.spec, "truncation": None, "padding": None}
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    bare, whole = (backend.encode("a", add_special_tokens=special).ids for special in (False, True))
    added = len(whole) - len(bare)
    before = next(i for i in range(added + 1) if whole[i : i + len(bare)] == bare)
    return tuple(whole[:before]), tuple(whole[before + len(bare) :])


def pair_encoder(tokenizer: Tokenizer, max_length: int) -> Callable[[str, str], tuple[list[int], list[int]]]:
    """A function from two texts to what a cross-encoder reads: ids, and to which text each belongs.

    They are laid out as the tokenizer's post-processor does, and the longer one is cut first.
    """
    spec = {**tokenizer.definition.spec, "truncation": None, "padding": None}
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    backend.encode_special_tokens = True
    backend.enable_truncation(max_length, strategy="longest_first")

    def encode(first: str, second: str) -> tuple[list[int], list[int]]:
        encoding = backend.encode(first, second)
        return encoding.ids, encoding.type_ids

    return encode


def last_user_message(messages: Sequence[Message]) -> str:
    """What a model with an encoder is asked, there being no form for whole conversations.

    Raises:
        RequestError: no message is the user's.
    """
    asked = [message.content for message in messages if message.role == "user"]
    if not asked:
        raise RequestError("the conversation has no message of the user", "Add one")
    return asked[-1]


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
    stripped, continuation = _cut_pair(context, continuation)
    if not stripped:
        return [beginning(tokenizer)], tokenizer.encode(continuation)
    before = encode_prompt(tokenizer, stripped)
    return before, encode_prompt(tokenizer, stripped + continuation)[len(before) :] or tokenizer.encode(continuation)


def encode_source_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of a context for the encoder and of a continuation for the decoder; errors as in `encode_pair`."""
    stripped, continuation = _cut_pair(context, continuation)
    return encode_source(tokenizer, stripped), tokenizer.encode(continuation)


def _cut_pair(context: str, continuation: str) -> tuple[str, str]:
    """Move the spaces at a context's end to the continuation."""
    if not continuation:
        raise RequestError("a continuation to be scored is empty", "Give at least one character")
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation
