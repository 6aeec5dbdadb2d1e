"""What a rank exchanges with which others in a step, counted before any of them exists.

Sizes are those of the tensor that a collective is called with; what a link carries depends on the algorithm. Knows no
network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lmworks.models.config import ModelConfig
from lmworks.models.matrices import different_layers
from lmworks.models.parallel_plan import shard_units
from lmworks.models.slots import AttentionConfig, MoEConfig
from lmworks.models.transformer import Transformer
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.pipeline_schedules import SCHEDULES
from lmworks.train.config import TrainConfig
from lmworks.train.memory_plan import RankWork, rank_work, whole_shapes

_FLOAT32 = 4


@dataclass(frozen=True)
class Exchange:
    """One kind of communication of a step."""

    what: str
    """What travels."""
    collective: str
    """As torch.distributed names it."""
    group: str
    """Dimension of the mesh whose ranks take part."""
    ranks: int
    calls: int
    """In a step, by one rank."""
    bytes: int
    """Of all calls together."""


def communication(model: Transformer, train: TrainConfig, parallel: ParallelConfig) -> list[Exchange]:
    """What the first rank of a pipeline exchanges in a step.

    Args:
        model: whole, on the meta device.
        train: the run.
        parallel: resolved degrees.
    """
    config = model.config
    work, dtype = rank_work(train, parallel), train.dtype
    sizes = {name: math.prod(shape) for name, shape in whole_shapes(model, parallel, 0).items()}
    found = [
        *_weights(config, sizes, parallel, work, dtype),
        *_tensor(config, sizes, parallel, work, dtype),
        *_context(config, parallel, work, dtype),
        *_pipeline(config, parallel, work, dtype),
        *_experts(config, parallel, work, dtype),
    ]
    if (ranks := parallel.data * parallel.shard * parallel.context) > 1:
        found.append(Exchange("loss and counts", "all_reduce", "tokens", ranks, 1, 16))
    return [exchange for exchange in found if exchange.calls]


def _weights(
    config: ModelConfig, sizes: dict[str, int], parallel: ParallelConfig, work: RankWork, dtype: torch.dtype
) -> Iterator[Exchange]:
    everything, count, stage = sum(sizes.values()), work.micro_batches, parallel.zero_stage
    if parallel.shard == 1:
        ranks = parallel.data * parallel.context
        if ranks > 1:
            each = 2 if parallel.gradient_compression == "bfloat16" else _FLOAT32
            yield Exchange("gradients, in buckets", "all_reduce", "tokens", ranks, 1, everything * each)
        return
    split = parallel.shard * parallel.context
    units = sum(any(n.startswith(f"{unit}.") for n in sizes) for unit in shard_units(config))
    inside = sum(s for n, s in sizes.items() if n.startswith(tuple(f"{unit}." for unit in shard_units(config))))
    times = count if stage == 3 else 1
    gathers = (times * (2 * units + 1)) if stage == 3 else units + 1
    gathered = (times * (2 * inside + everything - inside)) if stage == 3 else everything
    yield Exchange("weights", "all_gather", "split", split, gathers, gathered * dtype.itemsize)
    sums = 1 if stage == 1 else count
    yield Exchange("gradients", "reduce_scatter", "split", split, sums * (units + 1), sums * everything * _FLOAT32)
    if parallel.data > 1:
        part = sums * everything * _FLOAT32 // split
        yield Exchange("split gradients", "all_reduce", "replicate", parallel.data, sums * (units + 1), part)


def _tensor(
    config: ModelConfig, sizes: dict[str, int], parallel: ParallelConfig, work: RankWork, dtype: torch.dtype
) -> Iterator[Exchange]:
    if (ranks := parallel.tensor) == 1:
        return
    layers = sum(name.endswith(".o_proj.weight") for name in sizes)
    each, count = work.tokens * config.hidden_size * dtype.itemsize, work.micro_batches
    calls = 2 * layers * 2 * count  # attention and feed-forward net, forward and backward
    if parallel.sequence_parallel:
        ends = 2 * count  # where a stack begins and ends
        yield Exchange("tokens before matrices", "all_gather", "tensor", ranks, calls + ends, (calls + ends) * each)
        yield Exchange("sums after matrices", "reduce_scatter", "tensor", ranks, calls, calls * each)
    else:
        yield Exchange("sums around matrices", "all_reduce", "tensor", ranks, calls, calls * each)
    statistics = 4 * _FLOAT32 * work.tokens  # of every token's logits
    yield Exchange("embeddings and loss", "all_reduce", "tensor", ranks, 4 * count, count * (2 * each + statistics))


def _context(config: ModelConfig, parallel: ParallelConfig, work: RankWork, dtype: torch.dtype) -> Iterator[Exchange]:
    if (ranks := parallel.context) == 1:
        return
    calls = bytes_ = 0
    for _, stack in config.columns.values():
        for attention, *_ in different_layers(stack):
            if not isinstance(attention, AttentionConfig):
                continue
            queries = attention.num_attention_heads * attention.head_dim // parallel.tensor
            keys = attention.num_key_value_heads * attention.head_dim // parallel.tensor
            if parallel.context_method == "ring":
                calls += 2 * (ranks - 1)
                bytes_ += (ranks - 1) * work.tokens * 2 * keys * (2 * dtype.itemsize + _FLOAT32)
            else:
                calls += 4
                bytes_ += 2 * work.tokens * (2 * queries + 2 * keys) * dtype.itemsize
    name = "send and receive" if parallel.context_method == "ring" else "all_to_all"
    what = "keys, values and their gradients" if parallel.context_method == "ring" else "heads for tokens and back"
    yield Exchange(what, name, "context", ranks, work.micro_batches * calls, work.micro_batches * bytes_)


def _pipeline(config: ModelConfig, parallel: ParallelConfig, work: RankWork, dtype: torch.dtype) -> Iterator[Exchange]:
    if (ranks := parallel.pipeline) == 1:
        return
    kind = SCHEDULES[parallel.pipeline_schedule]
    hops = 2 * kind.stages_per_rank - 1  # of the first rank: one into the second, and for every stage more one back
    calls = 2 * hops * work.micro_batches
    each = work.tokens * config.hidden_size * dtype.itemsize
    yield Exchange("hidden states and their gradients", "send and receive", "pipeline", ranks, calls, calls * each)


def _experts(config: ModelConfig, parallel: ParallelConfig, work: RankWork, dtype: torch.dtype) -> Iterator[Exchange]:
    if (ranks := parallel.expert) == 1:
        return
    chosen = [
        mlp.num_experts_per_tok
        for _, stack in config.columns.values()
        for _, mlp, _ in different_layers(stack)
        if isinstance(mlp, MoEConfig)
    ]
    calls = 4 * len(chosen) * work.micro_batches  # there and back, forward and backward
    each = 4 * work.tokens * config.hidden_size * dtype.itemsize * work.micro_batches
    yield Exchange("tokens to their experts and back", "all_to_all", "expert", ranks, calls, each * sum(chosen))
