"""Log-likelihood of given continuations: packed forward passes without a cache. Knows no scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lmworks.core.generation import LogLikelihood
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import pack

LOGIT_ROWS = 256
"""Rows of the vocabulary computed at a time."""


@dataclass(frozen=True)
class _Window:
    """Tokens of one pair to be run as one document."""

    pair: int
    tokens: list[int]
    num_scored: int
    """The last so many of `tokens` are scored."""


@torch.inference_mode()
def loglikelihood(
    model: Transformer, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_model_len: int, batch_tokens: int
) -> list[LogLikelihood]:
    """How likely given tokens are after a context: log p(continuation | context), in nats.

    A pair that exceeds the context is cut from the left. A continuation that exceeds it alone is scored in
    windows that do not overlap in what they score; each sees at least one token before.

    Args:
        model: any decoder, in evaluation mode.
        pairs: `(context, continuation)`, neither empty.
        max_model_len: tokens the model may see.
        batch_tokens: tokens in one forward pass at most, unless a single window is longer.
    """
    sums, counts, greedy = [0.0] * len(pairs), [0] * len(pairs), [True] * len(pairs)
    windows = [w for i, pair in enumerate(pairs) for w in _windows(i, *pair, max_model_len)]
    windows.sort(key=lambda w: len(w.tokens), reverse=True)
    for group in _batches(windows, batch_tokens):
        scored = [[0.0] * (len(w.tokens) - w.num_scored - 1) + [1.0] * w.num_scored for w in group]
        batch = pack([(w.tokens[:-1], w.tokens[1:], s) for w, s in zip(group, scored, strict=True)]).to(model.device)
        hidden = model(batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens))
        places = batch.loss_weights.nonzero().flatten()
        values: list[float] = []
        hits: list[bool] = []
        for rows in torch.split(places, LOGIT_ROWS):
            logprobs = model.logits(hidden[rows]).float().log_softmax(-1)
            targets = batch.targets[rows]
            values += logprobs.gather(-1, targets[:, None]).flatten().tolist()
            hits += (logprobs.argmax(-1) == targets).tolist()
        done = 0
        for w in group:
            sums[w.pair] += sum(values[done : done + w.num_scored])
            counts[w.pair] += w.num_scored
            greedy[w.pair] &= all(hits[done : done + w.num_scored])
            done += w.num_scored
    return [LogLikelihood(*row) for row in zip(sums, counts, greedy, strict=True)]


def _windows(pair: int, context: Sequence[int], continuation: Sequence[int], max_model_len: int) -> Iterator[_Window]:
    tokens = [*context, *continuation]
    begin = len(context)
    while begin < len(tokens):
        end = min(len(tokens), begin + max_model_len)
        # The last token is predicted, not seen: a window is one longer than what the model sees.
        yield _Window(pair, tokens[max(0, end - max_model_len - 1) : end], end - begin)
        begin = end


def _batches(windows: list[_Window], batch_tokens: int) -> Iterator[list[_Window]]:
    group: list[_Window] = []
    size = 0
    for window in windows:
        if group and size + len(window.tokens) > batch_tokens:
            yield group
            group, size = [], 0
        group.append(window)
        size += len(window.tokens)
    if group:
        yield group
