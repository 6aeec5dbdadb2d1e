"""Texts to vectors by a served embedding model, for all routes that need them. Knows no route and no schema."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lmworks.engine.prompts import surroundings
from lmworks.protocol.completions import Prompt
from lmworks.protocol.embeddings import FloatArray
from lmworks.protocol.errors import InvalidRequestError
from lmworks.server.served_model import ServedModel

GROUP_TOKENS = 16_384
"""Tokens handed to the engine at once, so that a long list lets other clients in between."""


@dataclass(frozen=True)
class Vectors:
    """Unit vectors, and the tokens that were read for them."""

    rows: FloatArray
    """[N, E]"""
    num_tokens: int


async def embed(
    model: ServedModel, texts: Sequence[Prompt], *, param: str, cut: int | None = None, limits: Sequence[int] = ()
) -> Vectors:
    """One vector for each text.

    Args:
        model: who embeds.
        texts: or token ids without special tokens.
        param: the request field that holds them, for error bodies.
        cut: tokens of a text that are read at most; -1 is what the model takes. None refuses longer texts.
        limits: `cut` of each text, where they differ.

    Raises:
        InvalidRequestError: the model does not embed, or a text is empty or too long.
    """
    if model.llm.info.kind != "embed":
        raise InvalidRequestError(
            f"The model {model.name!r} generates texts and does not embed them", "Ask an embedding model", param="model"
        )
    documents = await asyncio.to_thread(_encode, model, texts, param, limits or [cut] * len(texts))
    rows: list[bytes] = []
    num_tokens = 0
    for group in _groups(documents):
        told = await model.llm.call("embed", documents=group)
        rows += told["vectors"]
        num_tokens += sum(told["num_tokens"])
    return Vectors(np.frombuffer(b"".join(rows), np.float32).reshape(len(rows), -1), num_tokens)


def _encode(model: ServedModel, texts: Sequence[Prompt], param: str, limits: Sequence[int | None]) -> list[list[int]]:
    tokenizer = model.llm.tokenizer
    before, after = surroundings(tokenizer)
    room = model.llm.max_model_len - len(before) - len(after)
    strings = iter(tokenizer.encode_batch([text for text in texts if isinstance(text, str)]))
    documents = [next(strings) if isinstance(text, str) else text for text in texts]
    for index, (ids, limit) in enumerate(zip(documents, limits, strict=True)):
        if not ids and not (before or after):
            raise InvalidRequestError(f"Text {index} of {param!r} has no tokens", "Leave empty texts out", param=param)
        if bad := next((i for i in ids if not 0 <= i < model.llm.info.vocab_size), None):
            raise InvalidRequestError(f"Token id {bad} in {param!r} is outside the vocabulary", param=param)
        if limit is not None:
            documents[index] = ids[: room if limit == -1 else min(limit, room)]
        elif len(ids) > room:
            raise InvalidRequestError(
                f"This model takes {room} tokens, and text {index} of {param!r} has {len(ids)}",
                "Shorten it, or send 'truncate_prompt_tokens': -1",
                param=param,
                code="context_length_exceeded",
            )
    return documents


def _groups(documents: Sequence[Sequence[int]]) -> Iterator[list[list[int]]]:
    """Documents in their order, within the budget of tokens."""
    group: list[list[int]] = []
    size = 0
    for document in documents:
        if group and size + len(document) > GROUP_TOKENS:
            yield group
            group, size = [], 0
        group.append(list(document))
        size += len(document)
    if group:
        yield group
