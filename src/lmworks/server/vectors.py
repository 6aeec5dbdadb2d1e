"""Vectors of texts and scores of pairs by a served model, for all routes that need them. Knows no route."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lmworks.engine.prompts import pair_encoder, surroundings
from lmworks.protocol.completions import Prompt
from lmworks.protocol.embeddings import FloatArray
from lmworks.protocol.errors import InvalidRequestError
from lmworks.server.served_model import ServedModel

GROUP_TOKENS = 16_384
"""Tokens handed to the engine at once, so that a long list lets other clients in between."""
GROUP_PAIRS = 32


@dataclass(frozen=True)
class Vectors:
    """Unit vectors, and the tokens that were read for them."""

    rows: FloatArray
    """[N, E]"""
    num_tokens: int


async def embed(model: ServedModel, texts: Sequence[Prompt], *, param: str, cut: int | None = None) -> Vectors:
    """One vector for each text.

    Args:
        model: who embeds.
        texts: or token ids without special tokens.
        param: the request field that holds them, for error bodies.
        cut: tokens of a text that are read at most; -1 is what the model takes. None refuses longer texts.

    Raises:
        InvalidRequestError: the model does not embed, or a text is empty or too long.
    """
    if model.llm.info.kind != "embed":
        raise InvalidRequestError(
            f"The model {model.name!r} generates texts and does not embed them", "Ask an embedding model", param="model"
        )
    documents = await asyncio.to_thread(_encode, model, texts, param, cut)
    rows: list[bytes] = []
    num_tokens = 0
    for group in _groups(documents):
        told = await model.llm.call("embed", documents=group)
        rows += told["vectors"]
        num_tokens += sum(told["num_tokens"])
    return Vectors(np.frombuffer(b"".join(rows), np.float32).reshape(len(rows), -1), num_tokens)


@dataclass(frozen=True)
class Scores:
    """How well texts go together, and the tokens that were read to say so."""

    values: list[float]
    num_tokens: int


async def score_pairs(model: ServedModel, first: Sequence[str], second: Sequence[str], *, param: str) -> Scores:
    """The judgment of a cross-encoder, or the cosine of the texts' vectors; longer texts are cut.

    Args:
        model: who judges, or embeds.
        first: one text for all of `second`, or as many.
        second: the other texts.
        param: the request field that holds `second`, for error bodies.

    Raises:
        InvalidRequestError: the model does neither, or a text is impossible.
    """
    if model.llm.info.kind == "embed" and model.llm.info.is_cross_encoder:
        return await _judged(model, list(first) * (len(second) // len(first)), second)
    vectors = await embed(model, [*first, *second], param=param, cut=-1)
    values = (vectors.rows[: len(first)] * vectors.rows[len(first) :]).sum(1).clip(-1, 1)
    return Scores(values.tolist(), vectors.num_tokens)


async def _judged(model: ServedModel, first: Sequence[str], second: Sequence[str]) -> Scores:
    def encode() -> list[tuple[list[int], list[int]]]:
        encoder = pair_encoder(model.llm.tokenizer, model.llm.max_model_len)
        return [encoder(*pair) for pair in zip(first, second, strict=True)]

    pairs = await asyncio.to_thread(encode)
    values: list[float] = []
    for at in range(0, len(pairs), GROUP_PAIRS):
        values += await model.llm.call("score", pairs=pairs[at : at + GROUP_PAIRS])
    return Scores(values, sum(len(ids) for ids, _ in pairs))


def _encode(model: ServedModel, texts: Sequence[Prompt], param: str, limit: int | None) -> list[list[int]]:
    tokenizer = model.llm.tokenizer
    before, after = surroundings(tokenizer)
    room = model.llm.max_model_len - len(before) - len(after)
    strings = iter(tokenizer.encode_batch([text for text in texts if isinstance(text, str)]))
    documents = [next(strings) if isinstance(text, str) else text for text in texts]
    for index, ids in enumerate(documents):
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
