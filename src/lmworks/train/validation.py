"""Bits per byte: how well a model predicts held-out text, comparable between any two tokenizers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmworks.core.errors import DataError
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import next_token_document, pack
from lmworks.objectives.causal_lm import CausalLM, token_loss

Documents = Iterable[Sequence[int] | NDArray[np.integer[Any]]]


def bits_per_byte(
    model: CausalLM, documents_token_ids: Documents, num_bytes: int, *, window: int = 512, batch_tokens: int = 8192
) -> float:
    """-log2 p(text) of all documents together, per UTF-8 byte of their texts.

    Every text token counts once, given the document's begin mark and what stands before it in its
    window; the end mark is not counted, so the figure compares with compressors that know the lengths.

    Args:
        model: on CPU or wherever its weights are.
        documents_token_ids: each `[bos] + text tokens + [eos]`, as a token store keeps it.
        num_bytes: UTF-8 bytes of the texts.
        window: longest context; a longer document is read in consecutive windows of this many tokens.
        batch_tokens: about how many tokens go through the model at one time.

    Raises:
        DataError: there is no text.
    """
    if num_bytes <= 0:
        raise DataError(f"bits per byte need text, and there are {num_bytes} bytes of it", "Give held-out documents")
    nats = 0.0
    device = next(iter(model.parameters())).device if isinstance(model, torch.nn.Module) else "cpu"
    with torch.no_grad():
        for pieces in _batches(documents_token_ids, window, batch_tokens):
            batch = pack([next_token_document(piece) for piece in pieces]).to(device)
            hidden = model(batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens))
            nats += float(token_loss(model, hidden, batch.targets, batch.loss_weights))
    return nats / math.log(2) / num_bytes


def _batches(documents: Documents, window: int, batch_tokens: int) -> Iterator[list[list[int]]]:
    """Windows of documents, gathered to about `batch_tokens`; neighbors overlap by the one token to predict from."""
    pieces: list[list[int]] = []
    size = 0
    for document in documents:
        ids = [int(token) for token in document[:-1]]  # without the end mark
        for start in range(0, len(ids) - 1, window):
            pieces.append(ids[start : start + window + 1])
            size += len(pieces[-1])
            if size >= batch_tokens:
                yield pieces
                pieces, size = [], 0
    if pieces:
        yield pieces
