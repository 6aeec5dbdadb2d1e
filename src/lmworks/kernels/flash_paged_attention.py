"""FlashAttention 3 over the paged cache, where it is installed: plain or windowed attention in 16 bits on Hopper GPUs.

It reads our blocks where they lie, through permuted views. Before it is first used it computes a small case, and where
it fails there or disagrees with the formula it is not used at all. Knows no scheduler and no model.
"""

from __future__ import annotations

import logging
from functools import cache as once
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from lmworks.kernels.masks import Causal, Window
from lmworks.kernels.native_attention import NativeRule, native_rule
from lmworks.kernels.paged_step import PagedSequence, PagedStep
from lmworks.kernels.scores import Scores
from lmworks.kernels.triton.launching import MOST_WIDTH

MODULE = "flash_attn_interface"
"""Of version 3; version 2 has no blocks of fewer than 256 tokens."""
TYPES = (torch.bfloat16, torch.float16)
HOPPER = (9, 0)
BOUND = 0.03
"""How far a mean of values about 1 may be from the formula's."""

logger = logging.getLogger(__name__)


def flash_refusal(cache: Tensor, rule: NativeRule) -> str | None:
    """Why FlashAttention does not compute this; None where it does.

    Args:
        cache: [P, K, blocks, block_size, D].
        rule: of the scores.
    """
    if not cache.is_cuda or torch.cuda.get_device_capability(cache.device) < HOPPER:
        return "FlashAttention 3 needs a Hopper GPU"
    if cache.shape[0] != 2 or cache.dtype not in TYPES or cache.shape[-1] > MOST_WIDTH:
        return f"it has no caches of {cache.shape[0]} planes of {cache.shape[-1]} numbers in {cache.dtype}"
    if rule.sinks is not None or rule.slopes is not None:
        return "it has no sinks and no ALiBi"
    if find_spec(MODULE) is None:
        return f"there is no module {MODULE}"
    return None if _agrees(cache.device, cache.dtype) else "it failed on a small case, see the log"


def flash_attention(query: Tensor, cache: Tensor, step: PagedStep, rule: NativeRule) -> Tensor:
    """Attention of one step's tokens [N, H, D], whose keys and values are in the cache already. Returns [N, H, D]."""
    tables, _ = step.on(cache.device, causal=rule.causal)
    bounds, num_keys = step.bounds_on(cache.device)
    key, value = (plane.permute(1, 2, 0, 3) for plane in cache)  # [blocks, block_size, K, D]
    result: Tensor = import_module(MODULE).flash_attn_with_kvcache(
        query, key, value, cache_seqlens=num_keys, page_table=tables, cu_seqlens_q=bounds,
        max_seqlen_q=max(s.length for s in step), softmax_scale=rule.scale, causal=rule.causal,
        window_size=(rule.window - 1, 0) if rule.window else (-1, -1), softcap=rule.softcap,
    )  # fmt: skip
    return result


@once
def _agrees(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether it computes what the formula says: two sequences, grouped heads, scattered blocks, a window."""
    from lmworks.kernels.paged_attention import paged_attention_reference  # it imports this file

    generator = torch.Generator(device).manual_seed(0)
    cache = torch.randn(2, 2, 8, 16, 64, dtype=dtype, device=device, generator=generator)
    query = torch.randn(21, 4, 64, dtype=dtype, device=device, generator=generator)
    step = PagedStep([PagedSequence((5, 0, 3), 40, 1), PagedSequence((1, 7, 2, 4), 30, 20)])
    scores = Scores(0.125, Causal() & Window(24))
    rule = native_rule(scores)
    assert isinstance(rule, NativeRule), "windows have one"
    try:
        got = flash_attention(query, cache, step, rule)
    except Exception as error:  # noqa: BLE001 - another version of the library may raise anything
        logger.warning("FlashAttention 3 is not used: %s", error)
        return False
    far = (got - paged_attention_reference(query, cache, step, scores)).abs().amax().item()
    if not far <= BOUND:
        logger.warning("FlashAttention 3 is not used: it is %.2g from the formula", far)
        return False
    logger.info("paged attention: FlashAttention 3 for %s", dtype)
    return True
