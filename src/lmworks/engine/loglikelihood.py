"""Log-likelihood of given continuations: packed forward passes without a cache. Knows no scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmworks.core.generation import LogLikelihood
from lmworks.engine.execution.model_runner import encode, source_bounds
from lmworks.engine.servable import decoder_prompt
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import Batch, pack

LOGIT_ROWS = 256
"""Rows of the vocabulary computed at a time."""


@dataclass(frozen=True)
class _Window:
    """Tokens of one pair to be run as one document."""

    pair: int
    tokens: list[int]
    num_scored: int
    """The last so many of `tokens` are scored."""
    source: Sequence[int] = ()
    """What the encoder reads, where the model has one."""

    @property
    def size(self) -> int:
        """Tokens to compute."""
        return len(self.tokens) + len(self.source)


@torch.inference_mode()
def loglikelihood(
    model: Transformer,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    max_model_len: int,
    batch_tokens: int,
    max_source_len: int = 0,
) -> list[LogLikelihood]:
    """How likely given tokens are after a context: log p(continuation | context), in nats.

    A pair that exceeds the context is cut from the left. A continuation that exceeds it alone is scored in
    windows that do not overlap in what they score; each sees at least one token before. Where the model has an
    encoder, that reads the context, and the decoder begins with its own first token.

    Args:
        model: any that generates, in evaluation mode.
        pairs: `(context, continuation)`, neither empty.
        max_model_len: tokens the model may see.
        batch_tokens: tokens in one forward pass at most, unless a single window is longer.
        max_source_len: tokens that the encoder may see.
    """
    sums, counts, greedy = [0.0] * len(pairs), [0] * len(pairs), [True] * len(pairs)
    windows: list[_Window] = []
    for i, (context, continuation) in enumerate(pairs):
        source: Sequence[int] = ()
        if model.encoder is not None:
            context, source = decoder_prompt(model.config), context[-max_source_len:]
        windows += _windows(i, context, continuation, max_model_len, source)
    windows.sort(key=lambda w: w.size, reverse=True)
    for group in _batches(windows, batch_tokens):
        scored = [[0.0] * (len(w.tokens) - w.num_scored - 1) + [1.0] * w.num_scored for w in group]
        batch = pack([(w.tokens[:-1], w.tokens[1:], s) for w, s in zip(group, scored, strict=True)]).to(model.device)
        hidden = _hidden(model, batch, [w.source for w in group if w.source])
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


def _hidden(model: Transformer, batch: Batch, sources: Sequence[Sequence[int]]) -> Tensor:
    if not sources:
        return model(batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens))
    bounds = source_bounds([len(source) for source in sources], model.device)
    context = PackedContext(batch.cu_seqlens, memory_cu_seqlens=bounds)
    return model(batch.input_ids, batch.positions, context, memory=encode(model, sources))


def _windows(
    pair: int, context: Sequence[int], continuation: Sequence[int], max_model_len: int, source: Sequence[int]
) -> Iterator[_Window]:
    tokens = [*context, *continuation]
    begin = len(context)
    while begin < len(tokens):
        end = min(len(tokens), begin + max_model_len)
        # The last token is predicted, not seen: a window is one longer than what the model sees.
        yield _Window(pair, tokens[max(0, end - max_model_len - 1) : end], end - begin, source)
        begin = end


def _batches(windows: list[_Window], batch_tokens: int) -> Iterator[list[_Window]]:
    group: list[_Window] = []
    size = 0
    for window in windows:
        if group and size + window.size > batch_tokens:
            yield group
            group, size = [], 0
        group.append(window)
        size += window.size
    if group:
        yield group
