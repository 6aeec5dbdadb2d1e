"""Limits on gradients before an update, and the norms that tell what a run is doing. Knows no optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lmworks.core.config import Config
from lmworks.optim.param_groups import HEADS, trainable
from lmworks.optim.shards import part

UNIT_EPS = 1e-3
"""Smallest norm that a unit's weights count with, so that those that begin at zero can learn."""


class ClippingConfig(Config):
    """How gradients are limited."""

    kind: Literal["norm", "per_parameter", "adaptive"] = "norm"
    """`norm`: all together are scaled down to a global norm (arXiv:1211.5063); `per_parameter`: each parameter's
    to a norm of its own; `adaptive`: each unit's (row's) to a share of the norm of its weights, the output layer
    excepted (AGC, arXiv:2102.06171)."""
    limit: Annotated[float, Field(gt=0)] = 1.0
    """The norm, or under `adaptive` the share; there 0.01 to 0.16 are usual."""


@dataclass(frozen=True)
class GradientNorms:
    """Norms before clipping; tensors on the device, so that nothing waits until they are read."""

    names: tuple[str, ...]
    each: Tensor
    """[parameters] float32, in the order of `names`."""
    total: Tensor
    """[] float32: of all together."""

    def by_name(self) -> dict[str, float]:
        """Each parameter's norm."""
        return dict(zip(self.names, self.each.tolist(), strict=True))

    def by_layer(self) -> dict[str, float]:
        """Norms of the parameters of each layer together: names up to the first number, as `decoder.layers.3`."""
        return norms_by_layer(self.by_name())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients that are there, by the names of their parameters."""
    return {name: p.grad for name, p in trainable(model) if p.grad is not None}


def norms_of(tensors: Mapping[str, Tensor]) -> GradientNorms:
    """Norms of named tensors that are whole on this process."""
    if not tensors:
        return GradientNorms((), torch.zeros(0), torch.zeros(()))
    each = torch.stack([norm.float() for norm in torch._foreach_norm(list(tensors.values()))])
    return GradientNorms(tuple(tensors), each, torch.linalg.vector_norm(each))


def gradient_norms(model: nn.Module) -> GradientNorms:
    """Norms of all gradients of a model that is whole on this process."""
    return norms_of(gradients(model))


@torch.no_grad()
def clip_gradients(model: nn.Module, norms: GradientNorms, config: ClippingConfig) -> None:
    """Scale gradients down in place; those within the limit keep every bit.

    Args:
        model: whose gradients `norms` are of.
        norms: all finite; look at `total` first.
        config: the limit.
    """
    named = {name: p for name, p in trainable(model) if p.grad is not None}
    parts = [part(gradient) for gradient in gradients(model).values()]
    if config.kind == "norm":
        torch._foreach_mul_(parts, _factor(norms.total, config.limit))
    elif config.kind == "per_parameter":
        for gradient, factor in zip(parts, _factor(norms.each, config.limit), strict=True):
            gradient.mul_(factor)
    else:
        for name, parameter in named.items():
            if not set(name.split(".")) & set(HEADS):
                assert parameter.grad is not None, "filtered above"
                weight = _unit_norms(parameter).clamp(min=UNIT_EPS)
                parameter.grad.mul_(_factor(_unit_norms(parameter.grad) / weight, config.limit))


def norms_by_layer(norms: Mapping[str, float]) -> dict[str, float]:
    """Root of the sum of squares over the parameters of each layer; those outside of layers under their own names."""
    layers: dict[str, float] = {}
    for name, norm in norms.items():
        layer = _layer(name.split("."))
        layers[layer] = layers.get(layer, 0.0) + norm**2
    return {layer: total**0.5 for layer, total in layers.items()}


def _layer(parts: Sequence[str]) -> str:
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts)


def _factor(norm: Tensor, limit: float) -> Tensor:
    """`limit / norm` where the norm exceeds it, else exactly 1."""
    return torch.where(norm > limit, limit / norm, torch.ones_like(norm))


def _unit_norms(tensor: Tensor) -> Tensor:
    """Of each row over its inputs, shaped to multiply with `tensor`; a vector is one unit."""
    if tensor.ndim <= 1:
        return torch.linalg.vector_norm(tensor)
    return torch.linalg.vector_norm(tensor, dim=-1, keepdim=True)
