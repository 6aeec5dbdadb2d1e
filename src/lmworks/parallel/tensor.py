"""Tensor and sequence parallelism: a model's matrices divided among ranks as its plan of strings says.

Between a map divided by columns and one divided by rows each rank works on its own heads or inner units (Megatron-LM,
arXiv:1909.08053); the module that holds them is a region, whose input every rank has whole and whose output is a sum.
Outside of regions every rank has all tokens, or with sequence parallelism some of them (arXiv:2205.05198). Divided
weights are DTensors, so that checkpoints and FSDP know their other parts. Knows modules by name and kind, no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional as F

from lmworks.core.errors import ParallelError
from lmworks.kernels.scores import DistanceBias, ScoreBias
from lmworks.nn.positions import PositionSignal
from lmworks.parallel.collectives import TokenSplit, copied, summed
from lmworks.parallel.randomness import own_draws
from lmworks.parallel.vocabulary import DividedEmbedding, DividedHead, local

DIVISIBLE: dict[str, tuple[type[nn.Module], ...]] = {
    "column": (nn.Linear,),
    "row": (nn.Linear,),
    "vocabulary": (nn.Linear, nn.Embedding),
}
"""What a style can be applied to."""


class ColumnLinear(nn.Module):
    """A linear map of whose outputs the caller computes its own.

    Args:
        weight: [out, in] divided along the outputs.
        bias: [out] divided too.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out / ranks]."""
        return F.linear(x, local(self.weight), None if self.bias is None else local(self.bias))


class RowLinear(nn.Module):
    """A linear map of whose inputs the caller has its own; the outputs are sums over ranks.

    Args:
        weight: [out, in] divided along the inputs.
        bias: [out], whole.
        group: the ranks that share the weight.
        tokens: deals the outputs' tokens out; None leaves all on every rank.
    """

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, group: dist.ProcessGroup, tokens: TokenSplit | None
    ) -> None:
        super().__init__()
        self.weight, self.group, self.tokens = weight, group, tokens
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in / ranks] -> [N, out], or the caller's tokens of it."""
        part = F.linear(x, local(self.weight))
        y = summed(part, self.group) if self.tokens is None else self.tokens.scatter(part)
        return y if self.bias is None else y + self.bias


def divide(model: nn.Module, plan: Mapping[str, str], mesh: DeviceMesh, *, tokens: bool) -> list[str]:
    """Divide a model's weights in place.

    Args:
        model: the same weights on every rank.
        plan: style of every divided module by its name: "column", "row", "vocabulary", "shared", "whole", "tokens".
        mesh: one dimension.
        tokens: divide the tokens between matrices too, in the stacks that the plan names so.

    Returns:
        Names of whole parameters whose gradients are partial: after the backward pass they are to be summed over
        the mesh.

    Raises:
        ParallelError: a module that is to be divided is not a plain linear map or table.
    """
    group = mesh.get_group()
    splits = {name: TokenSplit(group) for name, style in plan.items() if style == "tokens" and tokens}
    modules = dict(model.named_modules())
    require_divisible(model, plan)
    made: dict[int, nn.Parameter] = {}
    regions: dict[str, None] = {}

    def part(parameter: Tensor | None, dim: int) -> nn.Parameter | None:
        """One object for a parameter that two modules share."""
        if parameter is None:
            return None
        if id(parameter) not in made:
            held = distribute_tensor(parameter.detach(), mesh, [Shard(dim)], src_data_rank=None)
            made[id(parameter)] = nn.Parameter(held, requires_grad=parameter.requires_grad)
        return made[id(parameter)]

    for name, style in plan.items():
        module, split = modules[name], _owner(splits, name)
        divided: nn.Module
        if style == "column":
            divided = ColumnLinear(_some(part(module.weight, 0)), part(module.bias, 0))
        elif style == "row":
            divided = RowLinear(_some(part(module.weight, 1)), module.bias, group, split)
            regions[name.rpartition(".")[0]] = None
        elif style == "vocabulary" and isinstance(module, nn.Embedding):
            divided = DividedEmbedding(_some(part(module.weight, 0)), group)
        elif style == "vocabulary":
            divided = DividedHead(_some(part(module.weight, 0)), part(module.bias, 0), group)
        else:
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, divided)
    for name in regions:
        modules[name].register_forward_pre_hook(partial(_enter, group, _owner(splits, name)))
    for name, split in splits.items():
        _divide_tokens(modules[name], split)
        for whole in (n for n, style in plan.items() if style == "whole" and n.startswith(f"{name}.")):
            modules[whole].register_forward_pre_hook(partial(_join_first, split))
            modules[whole].register_forward_hook(partial(_split_output, split))
    return _partial_parameters(model, plan, list(regions), splits)


def require_divisible(model: nn.Module, plan: Mapping[str, str]) -> None:
    """Check that a plan fits a model.

    Raises:
        ParallelError: a module that is to be divided is not a plain linear map or table.
    """
    modules = dict(model.named_modules())
    for name, style in plan.items():
        if style in DIVISIBLE and not isinstance(modules.get(name), DIVISIBLE[style]):
            raise ParallelError(
                f"{name} is a {type(modules.get(name)).__name__} and cannot be divided by {style}",
                "Divide the model before adapters are injected or weights are quantized, or set `tensor: 1`",
            )


def _some(parameter: nn.Parameter | None) -> nn.Parameter:
    assert parameter is not None, "a linear map has a weight"
    return parameter


def _owner(splits: Mapping[str, TokenSplit], name: str) -> TokenSplit | None:
    return next((split for stack, split in splits.items() if name.startswith(f"{stack}.")), None)


def _enter(group: dist.ProcessGroup, split: TokenSplit | None, module: nn.Module, args: tuple[Any, ...]) -> Any:
    """Give a region its input whole, its heads' share of the scores' biases, and others' gradients for its memory."""
    x, *others = args
    entered: list[Any] = [copied(x, group) if split is None else split.gather(x)]
    for value in others:
        if isinstance(value, PositionSignal) and value.bias is not None:
            entered.append(replace(value, bias=_own_heads(value.bias, group)))
        else:
            entered.append(copied(value, group) if isinstance(value, Tensor) else value)
    return tuple(entered)


def _own_heads(bias: ScoreBias, group: dist.ProcessGroup) -> ScoreBias:
    rank, ranks = dist.get_rank(group), group.size()
    if isinstance(bias, DistanceBias):
        return DistanceBias(bias.slopes.chunk(ranks)[rank])
    return lambda query, key: bias(query, key).chunk(ranks)[rank]


def _divide_tokens(stack: nn.Module, split: TokenSplit) -> None:
    """Deal tokens out before the first layer and collect them after the norm, or after the last layer.

    Between, dropout is of each rank's own tokens.
    """
    layers = stack.get_submodule("layers")
    assert isinstance(layers, nn.ModuleList), "a stack has layers"
    drawing: list[AbstractContextManager[None]] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> Any:
        if module.training:
            drawing.append(own_draws(split.group, args[0].device))
            drawing[-1].__enter__()
        return split.split(args[0]), *args[1:]

    def leave(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if drawing:
            drawing.pop().__exit__(None, None, None)
        return split.join(output)

    layers[0].register_forward_pre_hook(enter)
    norm = getattr(stack, "norm", None)
    (layers[-1] if norm is None else norm).register_forward_hook(leave)


def _join_first(split: TokenSplit, module: nn.Module, args: tuple[Any, ...]) -> Any:
    return split.join(args[0]), *args[1:]


def _split_output(split: TokenSplit, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return split.part(output)


def _partial_parameters(
    model: nn.Module, plan: Mapping[str, str], regions: list[str], splits: Mapping[str, TokenSplit]
) -> list[str]:
    """What is whole, and used on every rank for other heads or other tokens."""
    divided = tuple(f"{n}.weight" for n, s in plan.items() if s in ("column", "row", "vocabulary")) + tuple(
        f"{n}.bias" for n, s in plan.items() if s in ("column", "vocabulary")
    )
    shared = tuple(f"{n}." for n, s in plan.items() if s == "shared")
    whole = tuple(f"{n}." for n, s in plan.items() if s == "whole")
    row_biases = {f"{n}.bias" for n, s in plan.items() if s == "row"}
    inside = tuple(f"{n}." for n in regions)
    between = tuple(p for n in splits for p in (f"{n}.layers.", f"{n}.norm."))
    names = []
    for name, _ in model.named_parameters():
        if name in divided or name.startswith(whole):
            continue
        in_region = name.startswith((*inside, *shared)) and name not in row_biases
        if in_region or name.startswith(between):
            names.append(name)
    return names
