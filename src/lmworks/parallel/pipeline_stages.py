"""A model cut into stages by its layers: embeddings with the first, the final norm and the head with the last.

Stages are the model's own modules with less in them, so weights are shared with the whole model, keep its names, and
nothing is copied. Knows any model by the names of its parts: one stack (`decoder` or `encoder`) of `layers`.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from lmworks.core.errors import ParallelError

_BEFORE = ("embed_positions", "embed_types", "embed_norm", "embed_projection")
"""What a stack applies before its layers."""


def cut_stage(model: nn.Module, index: int, num_stages: int) -> nn.Module:
    """The part of a model that one stage runs.

    Args:
        model: whole; may be on the meta device.
        index: of the stage, from 0.
        num_stages: how many there are.

    Returns:
        A model whose stack has the stage's layers alone, under their names in the whole model.

    Raises:
        ParallelError: the model cannot be cut so.
    """
    name = require_stages(model, num_stages)
    part, stack = _without_copying(model), _without_copying(getattr(model, name))
    setattr(part, name, stack)
    layers = list(stack.layers)
    first, last = index * len(layers) // num_stages, (index + 1) * len(layers) // num_stages
    stack.layers = nn.ModuleList()
    for number in range(first, last):
        stack.layers.add_module(str(number), layers[number])
    is_first, is_last = index == 0, index == num_stages - 1
    if not is_first:
        for before in _BEFORE:
            setattr(stack, before, None)
        stack.dropout = 0.0  # of the embeddings
        if not (is_last and tied(model)):
            part._modules.pop("embed_tokens")
    if not is_last:
        stack.norm = None
        part.head = None
        part._modules.pop("lm_head", None)
    return part


def require_stages(model: nn.Module, num_stages: int) -> str:
    """Check that a model can be cut into so many stages, and name the stack that is cut.

    Raises:
        ParallelError: it cannot, and why.
    """
    stacks = [name for name in ("vision", "encoder", "decoder") if getattr(model, name, None) is not None]
    if len(stacks) != 1 or stacks == ["vision"]:
        raise ParallelError(
            f"a {type(model).__name__} with {' and '.join(stacks) or 'no stack of its own'} cannot be cut into stages: "
            "a pipeline carries the hidden states of one stack of text",
            "Set `pipeline: 1` for this model and use `shard` or `tensor`",
        )
    stack: Any = getattr(model, stacks[0])
    if getattr(stack, "target_embedding", None) is not None:
        raise ParallelError(
            "a model with two streams (XLNet) cannot be cut into stages: its second stream begins in the stack",
            "Set `pipeline: 1` for this model and use `shard` or `tensor`",
        )
    if len(stack.layers) < num_stages:
        raise ParallelError(
            f"{len(stack.layers)} different layers cannot be cut into {num_stages} stages",
            "Lower `pipeline`, or choose a schedule with fewer stages on a rank",
        )
    return stacks[0]


def tied(model: nn.Module) -> bool:
    """Whether the first and the last stage need the same matrix: the vocabulary's."""
    head, table = getattr(model, "lm_head", None), getattr(model, "embed_tokens", None)
    return head is not None and table is not None and head.weight is table.weight


def shared_parameters(model: nn.Module, stage_ranks: dict[int, int]) -> list[tuple[str, nn.Parameter, tuple[int, ...]]]:
    """Weights that stages on several ranks use: tied embeddings, position biases of all layers.

    Args:
        model: whole.
        stage_ranks: the rank of every stage.

    Returns:
        Name, weight and ascending ranks of each, in the model's order.
    """
    users: dict[int, set[int]] = {}
    for index, rank in stage_ranks.items():
        for parameter in cut_stage(model, index, len(stage_ranks)).parameters():
            users.setdefault(id(parameter), set()).add(rank)
    return [(n, p, tuple(sorted(users[id(p)]))) for n, p in model.named_parameters() if len(users[id(p)]) > 1]


def _without_copying(module: nn.Module) -> Any:
    """The same module with tables of its own, from which parts can be taken."""
    other = copy.copy(module)
    other._modules, other._parameters = dict(module._modules), dict(module._parameters)
    return other
