"""How much of a GPU's memory the cache may take: what is left of a share when the largest step is running.

Knows no request.
"""

from __future__ import annotations

import logging

import torch

from lmworks.core.errors import ConfigError
from lmworks.engine.config import EngineConfig
from lmworks.engine.execution.kv_cache import DEFAULT_MEMORY
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext

log = logging.getLogger(__name__)


def cache_memory(model: Transformer, config: EngineConfig) -> int:
    """Bytes for the cache, where the configuration does not say.

    On a GPU the largest step is run once without a cache. As in vLLM, what other processes hold of the GPU counts
    against the share, too.

    Raises:
        ConfigError: weights and activations leave nothing of the share.
    """
    device = model.device
    if device.type != "cuda" or config.kv_cache_memory_bytes is not None or config.num_kv_blocks is not None:
        return DEFAULT_MEMORY
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    run_largest_step(model, config)
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    left = left_for_cache(total, others, peak, config.gpu_memory_utilization)
    log.info("%.2f GiB of the GPU's %.2f are for the cache", left / 2**30, total / 2**30)
    return left


def left_for_cache(total: int, others: int, peak: int, utilization: float) -> int:
    """Bytes of a GPU that are left of a share.

    Args:
        total: the GPU's bytes.
        others: taken outside of PyTorch.
        peak: taken by weights and activations.
        utilization: the share.

    Raises:
        ConfigError: none are.
    """
    left = int(total * utilization) - others - peak
    if left <= 0:
        raise ConfigError(
            f"weights and activations take {peak / 2**30:.2f} GiB and others {others / 2**30:.2f} GiB, more than "
            f"gpu_memory_utilization {utilization} of {total / 2**30:.2f} GiB",
            "Raise gpu_memory_utilization, lower max_num_batched_tokens, or quantize the weights",
        )
    return left


@torch.inference_mode()
def run_largest_step(model: Transformer, config: EngineConfig) -> None:
    """Compute `max_num_batched_tokens` tokens, and logits of as many sequences as may run."""
    count = config.max_num_batched_tokens
    per_document = min(count, config.max_model_len or model.config.max_position_embeddings)
    place = torch.arange(count, device=model.device)
    bounds = torch.tensor([*range(0, count, per_document), count], dtype=torch.int32, device=model.device)
    memory = None
    context = PackedContext(bounds)
    if model.encoder is not None:
        memory = model.encode(torch.zeros_like(place), place % per_document, context)
        context = PackedContext(bounds, memory_cu_seqlens=bounds)
    hidden = model(torch.zeros_like(place), place % per_document, context, memory=memory)
    model.logits(hidden[: config.max_num_seqs]).float()
