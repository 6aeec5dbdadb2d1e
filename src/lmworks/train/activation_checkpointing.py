"""Keeping less for the backward pass and computing it again (Chen et al., 2016, arXiv:1604.06174).

Works on whatever stands in a `ModuleList` called `layers`, as stacks of blocks do. Knows no model class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lmworks.core.errors import ConfigError
from lmworks.kernels import training_operations  # noqa: F401 - registers the native attention

Recompute = Literal["none", "full", "selective"]

_ATTENTION = (
    torch.ops.lmworks.causal_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)
_PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_mm.default,
    torch.ops.aten._grouped_mm.default,
)


@contextmanager
def recomputing(model: nn.Module, mode: Recompute) -> Iterator[None]:
    """While the block runs, layers of `model` keep their inputs and compute again what their backward pass needs.

    Gradients are the same bits: random numbers are drawn as the first time.

    Args:
        model: has its blocks in lists called `layers`.
        mode: `full` keeps nothing inside a layer; `selective` keeps the results of attention, where that is one
            operation, and of every second matrix product, so that about half of the products are computed again
            (torchtitan). Products that write into a given tensor, as experts' do on CPU, are always computed again.

    Raises:
        ConfigError: no layers are found.
    """
    if mode == "none":
        yield
        return
    layers = [model.get_submodule(name) for name in layer_names(model)]
    if not layers:
        raise ConfigError(
            f"activation_checkpointing {mode!r} needs a module list called 'layers', and the model has none",
            "Use activation_checkpointing none",
        )
    contexts: dict[str, Any] = {} if mode == "full" else {"context_fn": _selective_contexts}
    with replaced_forward(layers, lambda forward: partial(checkpoint, forward, use_reentrant=False, **contexts)):
        yield


@contextmanager
def replaced_forward(modules: Sequence[nn.Module], change: Callable[[Callable[..., Any]], Any]) -> Iterator[None]:
    """While the block runs, each module's `forward` is what `change` makes of it. Blocks may be nested."""
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        vars(module)["forward"] = change(module.forward)
    try:
        yield
    finally:
        for module, earlier in zip(modules, before, strict=True):
            if earlier is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = earlier


def layer_names(model: nn.Module) -> list[str]:
    """Names of the blocks of a model: what stands in its lists called `layers`."""
    return [
        f"{name}.{index}"
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "layers" and isinstance(module, nn.ModuleList)
        for index, _ in module.named_children()
    ]


def _selective_contexts() -> tuple[Any, Any]:
    """A context of the forward pass and one of the recomputation, which must choose alike."""
    counts = {False: 0, True: 0}

    def policy(context: Any, operation: Callable[..., Any], *_: Any, **__: Any) -> CheckpointPolicy:
        if operation in _ATTENTION:
            return CheckpointPolicy.MUST_SAVE
        if operation in _PRODUCTS:
            counts[context.is_recompute] += 1
            if counts[context.is_recompute] % 2:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
