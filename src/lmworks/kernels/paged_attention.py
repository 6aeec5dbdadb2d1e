"""Attention over a cache of fixed-size blocks: the formula, and which of the fast paths computes it.

The cache of one layer is `[P, K, blocks, block_size, D]`, head-major. Two planes hold keys and values; where there is
one, values are the first columns of keys (latent attention). A sequence's tokens lie in the blocks of its table, in
order. Vectors of int8 are `[D + 4]`, the scale behind the numbers. Knows no scheduler and no model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache as once
from typing import Literal

import torch
from torch import Tensor

from lmworks.core.errors import ConfigError
from lmworks.kernels.batched_paged_attention import BatchedAttention
from lmworks.kernels.flash_paged_attention import flash_attention, flash_refusal
from lmworks.kernels.masks import Places
from lmworks.kernels.native_attention import (
    NativeRule,
    holds_natively,
    native_attention,
    native_rule,
    native_write,
)
from lmworks.kernels.paged_step import PagedSequence, PagedStep, decoded, encoded
from lmworks.kernels.scores import Scores, attention_formula

PagedAttentionMethod = Literal["auto", "native", "batched", "reference", "flash"]
"""`auto` is FlashAttention where it is installed and fits, else native where there is native code for cache and scores,
else batched."""

logger = logging.getLogger(__name__)


class PagedWrite:
    """Stores the keys and values of one step's new tokens, in every layer.

    Args:
        sequences: whose new tokens are stored at their positions, in the order of the packed tokens.
        device: of the cache.
        method: as in `PagedAttention`.
    """

    def __init__(
        self, sequences: Sequence[PagedSequence], device: torch.device, method: PagedAttentionMethod = "auto"
    ) -> None:
        self._step, self._device = _step(sequences), device
        self._native = method in ("auto", "native", "flash")
        self._rows: dict[torch.Size, Tensor] = {}

    def __call__(self, cache: Tensor, key: Tensor, value: Tensor) -> None:
        """Store.

        Args:
            cache: [P, K, blocks, block_size, D], contiguous.
            key: [N, K, D].
            value: [N, K, Dv]; left out where the cache has one plane.
        """
        if self._native and holds_natively(cache):
            return native_write(cache, key, value, self._step)
        rows = self._rows.get(cache.shape)
        if rows is None:
            rows = self._rows[cache.shape] = self._place(cache.shape)
        new = encoded(key if cache.shape[0] == 1 else torch.stack((key, value)), cache.dtype)
        cache.view(-1, cache.shape[-1]).index_copy_(0, rows, new.reshape(-1, cache.shape[-1]))
        return None

    def _place(self, shape: torch.Size) -> Tensor:
        """[P·N·K] row in the flattened cache of every new vector; the same for all layers of one shape."""
        planes, kv_heads, blocks, block_size, _ = shape
        slots = [
            s.block_table[place // block_size] * block_size + place % block_size
            for s in self._step
            for place in range(s.start, s.start + s.length)
        ]
        heads = torch.arange(planes * kv_heads, device=self._device).view(planes, 1, kv_heads) * (blocks * block_size)
        return (heads + torch.tensor(slots, device=self._device).view(1, -1, 1)).flatten()


def paged_attention_reference(
    query: Tensor, cache: Tensor, sequences: Sequence[PagedSequence], scores: Scores, value_width: int | None = None
) -> Tensor:
    """The formula, sequence by sequence, in float32; the oracle. Arguments as in `PagedAttention.__call__`."""
    groups = query.shape[1] // cache.shape[1]
    outputs = []
    for q, s in zip(torch.split(query, [s.length for s in sequences]), sequences, strict=True):
        held = cache[:, :, list(s.block_table)].flatten(2, 3)[:, :, : s.num_keys]
        held = decoded(held).float()  # [P, K, keys, D]
        key, value = (plane.repeat_interleave(groups, dim=0) for plane in (held[0], held[-1][..., :value_width]))
        at = torch.arange(max(s.start + s.length, s.num_keys), device=query.device)
        places = Places(at[s.start : s.start + s.length, None], at[None, : s.num_keys])
        outputs.append(attention_formula(q.float().transpose(0, 1), key, value, scores, places).transpose(0, 1))
    return torch.cat(outputs).to(query.dtype)


class PagedAttention:
    """Attention of one step's tokens, laid out once for all layers.

    Args:
        sequences: in the order of the packed tokens.
        method: `reference` forces the formula, `native`, `batched` and `flash` one of the fast paths.
    """

    def __init__(self, sequences: Sequence[PagedSequence], method: PagedAttentionMethod = "auto") -> None:
        self.step, self.method = _step(sequences), method
        self._batched = BatchedAttention(self.step)

    def __call__(self, query: Tensor, cache: Tensor, scores: Scores, value_width: int | None = None) -> Tensor:
        """Attend; the step's own keys and values must be in the cache already.

        Args:
            query: [N, H, D].
            cache: [P, K, blocks, block_size, D].
            scores: the layer's rule. Its mask is asked with positions alone and lets every query see a key.
            value_width: Dv, where it is not D.

        Returns:
            [N, H, Dv].

        Raises:
            ConfigError: native code or FlashAttention was asked for, and has not this cache or these scores.
        """
        if self.method == "reference":
            return paged_attention_reference(query, cache, self.step, scores, value_width)
        if self.method != "batched":
            rule = self._native_rule(cache, scores)
            if cache.is_cuda or self.method == "flash":
                refusal = rule if isinstance(rule, str) else flash_refusal(cache, rule)
                if refusal is None and isinstance(rule, NativeRule):
                    return flash_attention(query, cache, self.step, rule)
                if self.method == "flash":
                    raise ConfigError(f"attention cannot be FlashAttention's: {refusal}", "Set attention to auto")
            if isinstance(rule, NativeRule):
                return native_attention(query, cache, self.step, rule)
            if self.method == "native":
                raise ConfigError(f"attention cannot be native: {rule}", "Set attention to auto")
            _say(rule)
        return self._batched(query, cache, scores, value_width)

    def _native_rule(self, cache: Tensor, scores: Scores) -> NativeRule | str:
        """The rule in native numbers, or why it is not computed natively."""
        if not holds_natively(cache):
            return f"no native code is there for caches of {cache.shape[0]} planes of {cache.dtype} on {cache.device}"
        rule = native_rule(scores)
        if isinstance(rule, NativeRule) and rule.causal and self.step.reads_sources:
            return "no native code for a source that is not seen whole"
        return rule


def _step(sequences: Sequence[PagedSequence]) -> PagedStep:
    return sequences if isinstance(sequences, PagedStep) else PagedStep(sequences)


@once
def _say(reason: str) -> None:
    logger.info("paged attention: batched, %s", reason)
