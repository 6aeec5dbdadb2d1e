"""The memory of one rank of a mesh that need not exist: what a step keeps, by what it is for.

Weights, gradients and optimizer states are counted from a model on the meta device, cut as the mesh would cut it;
activations follow from `models/memory.py`. Knows no process and runs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from lmworks.core.errors import ParallelError
from lmworks.models.accounting import block_norms
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.matrices import different_layers
from lmworks.models.memory import activation_bytes, training_bytes
from lmworks.models.parallel_plan import shard_units, tensor_plan
from lmworks.models.slots import AttentionConfig, MLAConfig, MLPConfig
from lmworks.models.transformer import Transformer
from lmworks.nn.moe import MixtureOfExperts
from lmworks.optim.param_groups import trainable
from lmworks.parallel.bubble import computation_order
from lmworks.parallel.config import ParallelConfig, rows_per_rank
from lmworks.parallel.pipeline_schedules import stage_ranks
from lmworks.parallel.pipeline_stages import cut_stage
from lmworks.train.config import TrainConfig
from lmworks.train.memory_plan_states import Shape, optimizer_bytes

_FLOAT32 = 4
_DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
"""Fields of a model of which each `tensor` rank has its share."""
_CUT = {"column": 0, "row": 1, "vocabulary": 0}
"""Which dimension of a weight a style divides."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes that one rank keeps at the fullest moment of a step."""

    parameters: int
    """Float32 weights that the optimizer updates: the rank's own part."""
    gradients: int
    """Their gradients."""
    optimizer: int
    """States between steps."""
    average: int
    """The running average of the weights, where there is one."""
    working_weights: int
    """Weights as the forward pass reads them: a copy in another precision, or what is gathered from other ranks."""
    working_gradients: int
    """Gradients as the backward pass makes them, before they are added to `gradients` or split."""
    activations: int
    """What the forward passes under way keep for their backward passes."""
    head: int
    """The loss: logits of a chunk, gradients of the vocabulary's matrix and of the hidden states."""

    @property
    def total(self) -> int:
        """All of it. Temporary results of single operations, allocator and process come on top."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class RankWork:
    """What one rank computes in a step."""

    micro_batches: int
    tokens: int
    """Of one micro-batch, on one rank."""
    context_length: int
    """Tokens of a row, all of which a token may see."""


def rank_work(train: TrainConfig, parallel: ParallelConfig) -> RankWork:
    """Micro-batches of a rank, for resolved degrees.

    Raises:
        ParallelError: rows or tokens do not divide.
    """
    rows = rows_per_rank(train.rows_per_step, parallel)
    micro_rows = train.micro_batch_rows(rows)
    if rows % micro_rows:
        raise ParallelError(
            f"{rows} rows of a rank are not whole micro-batches of {micro_rows} rows",
            "Choose micro_batch_tokens as a divisor of batch_tokens / (data x shard)",
        )
    return RankWork(rows // micro_rows, micro_rows * train.sequence_length // parallel.context, train.sequence_length)


def rank_memory(model: ModelConfig, train: TrainConfig, parallel: ParallelConfig) -> RankMemory:
    """The memory of the rank that needs most, for resolved degrees.

    Raises:
        ParallelError: the mesh divides the model or the batch unevenly.
    """
    with torch.device("meta"):
        built = build_model(model)
    ranks = [_of_rank(built, train, parallel, rank) for rank in range(parallel.pipeline)]
    return max(ranks, key=lambda memory: memory.total)


def rank_shapes(model: Transformer, parallel: ParallelConfig, rank: int = 0) -> dict[str, Shape]:
    """Shapes of a rank's own part of every trainable parameter; of the first of `shard`, whose parts are the largest.

    Args:
        model: whole, on the meta device.
        parallel: resolved degrees.
        rank: in the pipeline.
    """
    whole, split = whole_shapes(model, parallel, rank), _split(parallel)
    return {n: (-(-shape[0] // split), *shape[1:]) if shape and split > 1 else shape for n, shape in whole.items()}


def _split(parallel: ParallelConfig) -> int:
    """Ranks among which each weight is split; those of `context` take part where anything is."""
    return parallel.shard * parallel.context if parallel.shard > 1 else 1


def whole_shapes(model: Transformer, parallel: ParallelConfig, rank: int) -> dict[str, Shape]:
    """Shapes after `pipeline`, `tensor` and `expert`, before `shard`."""
    cuts: dict[str, int] = {}
    if parallel.tensor > 1:
        for name, style in tensor_plan(model.config, parallel.tensor).items():
            if style in _CUT:
                cuts[f"{name}.weight"] = _CUT[style]
            if style in ("column", "vocabulary"):
                cuts[f"{name}.bias"] = 0
    experts = tuple(f"{name}.experts." for name, m in model.named_modules() if isinstance(m, MixtureOfExperts))
    held = {id(p) for stage in _stages(model, parallel, rank) for p in stage.parameters()}
    shapes: dict[str, Shape] = {}
    for name, parameter in trainable(model):
        if id(parameter) not in held:
            continue
        shape = list(parameter.shape)
        if name in cuts:
            shape[cuts[name]] //= parallel.tensor
        if experts and name.startswith(experts):
            shape[0] //= parallel.expert
        shapes[name] = tuple(shape)
    return shapes


def _stages(model: Transformer, parallel: ParallelConfig, rank: int) -> list[nn.Module]:
    """The parts of the model that a rank of the pipeline runs."""
    if parallel.pipeline == 1:
        return [model]
    places = stage_ranks(parallel.pipeline_schedule, parallel.pipeline)
    return [cut_stage(model, stage, len(places)) for stage, place in places.items() if place == rank]


def _under_way(parallel: ParallelConfig, rank: int, micro_batches: int) -> int:
    """Most forward passes of single stages whose backward pass is still to come, on a rank of the pipeline."""
    if parallel.pipeline == 1:
        return 1
    order = computation_order(parallel.pipeline_schedule, parallel.pipeline, micro_batches)[rank]
    return max(accumulate({"F": 1, "I": 0, "W": -1, "B": -1}[computation.kind] for computation in order))


def _of_rank(model: Transformer, train: TrainConfig, parallel: ParallelConfig, rank: int) -> RankMemory:
    dtype = train.dtype
    whole, own = whole_shapes(model, parallel, rank), rank_shapes(model, parallel, rank)
    stages = _stages(model, parallel, rank)
    numbers = sum(map(math.prod, own.values()))
    weights, gradients = _working(model.config, train, parallel, whole, dtype)
    work = rank_work(train, parallel)
    local = local_config(model.config, parallel.tensor)
    share = _layers(stages[0]) / _layers(model) * _under_way(parallel, rank, work.micro_batches)
    judges = any(getattr(stage, "lm_head", None) is not None for stage in stages)
    return RankMemory(
        parameters=_FLOAT32 * numbers,
        gradients=_FLOAT32 * numbers,
        optimizer=optimizer_bytes(model, train.optimizer, own),
        average=0 if train.ema_decay is None else _FLOAT32 * numbers,
        working_weights=weights,
        working_gradients=gradients,
        activations=round(share * _activations(local, train, parallel, work, dtype)),
        head=training_bytes(local, work.tokens, dtype, optimizer_states=0).head if judges else 0,
    )


def _layers(model: nn.Module) -> int:
    """Of all stacks."""
    return sum(len(m) for n, m in model.named_modules() if n.endswith("layers") and isinstance(m, nn.ModuleList))


def _working(
    config: ModelConfig, train: TrainConfig, parallel: ParallelConfig, whole: dict[str, Shape], dtype: torch.dtype
) -> tuple[int, int]:
    """Bytes of weights and gradients that exist beside the rank's own parts, in the forward and backward pass."""
    sizes = {name: math.prod(shape) for name, shape in whole.items()}
    everything = sum(sizes.values())
    if _split(parallel) == 1:
        copied = 0 if train.precision == "float32" else everything * dtype.itemsize
        return copied, copied
    units = [sum(s for n, s in sizes.items() if n.startswith(f"{unit}.")) for unit in shard_units(config)]
    outside, largest = everything - sum(units), max(units, default=0)
    gathered = everything if parallel.zero_stage < 3 else outside + 2 * largest  # one at work, the next on its way
    made = everything if parallel.zero_stage == 1 else max(outside, largest)
    return gathered * dtype.itemsize, made * (_FLOAT32 if parallel.zero_stage == 1 else dtype.itemsize + _FLOAT32)


def local_config(config: ModelConfig, ranks: int) -> ModelConfig:
    """The model that one of so many `tensor` ranks computes: its share of heads, inner units and vocabulary."""
    if ranks == 1:
        return config

    def divided(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: item // ranks if key in _DIVIDED and isinstance(item, int) else divided(item)
                for key, item in value.items()
                if key != "vision"
            } | ({"vision": value["vision"]} if "vision" in value else {})
        return [divided(item) for item in value] if isinstance(value, list) else value

    return ModelConfig.parse(divided(config.to_dict()))


def _activations(
    config: ModelConfig, train: TrainConfig, parallel: ParallelConfig, work: RankWork, dtype: torch.dtype
) -> int:
    """Bytes kept of one micro-batch by all layers of a model, whose `tensor` share `config` describes."""
    mode = train.activation_checkpointing
    total = activation_bytes(
        config, work.tokens, dtype, context_length=work.context_length, checkpointing=mode != "none"
    )
    if mode == "selective":
        total += work.tokens * _products_kept(config) * dtype.itemsize
    if parallel.tensor > 1 and parallel.sequence_parallel:
        # Inputs of divided matrices are gathered and kept whole; norms and inputs of layers see a share of the tokens.
        alone = work.tokens * _between(config, checkpointing=mode != "none") * dtype.itemsize
        total -= alone - alone // parallel.tensor
    return total


def _between(config: ModelConfig, *, checkpointing: bool) -> int:
    """Numbers that one token keeps outside of divided matrices: by all norms, or as input of every layer."""
    count = 0
    for owner, stack in config.columns.values():
        each = 1 if checkpointing else block_norms(stack)
        count += owner.hidden_size * (stack.num_hidden_layers * each + stack.final_norm)
    return count


def _products_kept(config: ModelConfig) -> int:
    """Numbers per token that `selective` keeps: the result of attention and of every second matrix product."""
    count = 0
    for owner, stack in config.columns.values():
        for attention, mlp, _ in different_layers(stack):
            outputs = list[int]()
            if isinstance(attention, AttentionConfig):
                heads, kv = attention.num_attention_heads, attention.num_key_value_heads
                count += heads * attention.head_dim
                outputs += [n * attention.head_dim for n in (heads, kv, kv)] + [owner.hidden_size]
            elif isinstance(attention, MLAConfig):
                count += attention.num_attention_heads * attention.v_head_dim
            if isinstance(mlp, MLPConfig):
                outputs += [mlp.intermediate_size] * (2 if mlp.gated else 1) + [owner.hidden_size]
            count += sum(outputs[::2])
    return count
