"""`torch.compile` block by block, in place: the blocks of a model share the code that the first of them was given.

Attention stays as it is, as an operation between two compiled pieces: it is the native or the device's own already,
and how it goes about documents depends on their lengths, which differ in every batch. Works on whatever stands in a
`ModuleList` called `layers`. Knows no model class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn

from lmworks.core.errors import ConfigError
from lmworks.kernels.scores import Scores
from lmworks.nn.attention_context import AttentionContext
from lmworks.train.activation_checkpointing import Recompute, layer_names, recomputing, replaced_forward

BACKEND = "inductor"
"""Of `torch.compile`."""
MOST_VERSIONS = 32
"""Of one piece of code; every kind of block (and training or not) is a version. Beyond, pieces are not compiled."""


@contextmanager
def running_blocks(model: nn.Module, recompute: Recompute, *, compiled: bool) -> Iterator[None]:
    """While the block runs, the layers of `model` are compiled and computed again as asked.

    Args:
        model: has its blocks in lists called `layers`.
        recompute: see `recomputing`.
        compiled: whether the layers are compiled; sizes of batches may differ.

    Raises:
        ConfigError: no layers are found.
    """
    with compiling(model) if compiled else nullcontext(), recomputing(model, recompute):
        yield


@contextmanager
def compiling(model: nn.Module) -> Iterator[None]:
    """While the block runs, the layers of `model` are compiled, each kind of layer once, when it first runs.

    Results differ from uncompiled ones by rounding.

    Args:
        model: has its blocks in lists called `layers`.

    Raises:
        ConfigError: no layers are found.
    """
    layers = [model.get_submodule(name) for name in layer_names(model)]
    if not layers:
        raise ConfigError(
            "compile needs a module list called 'layers', and the model has none", "Leave train.compile out"
        )
    import torch._dynamo  # slow to import, and needed here alone

    def change(forward: Callable[..., Any]) -> Callable[..., Tensor]:
        return _with_attention_outside(torch.compile(forward, dynamic=True, backend=BACKEND))

    # A break inside of nested calls then parts the layer in two pieces, not each function on the way in two, and the
    # layer's number, which only the break's call reads, is no condition for using them.
    settings = torch._dynamo.config.patch(nested_graph_breaks=True, recompile_limit=MOST_VERSIONS)
    with replaced_forward(layers, change), settings:
        yield


def _with_attention_outside(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`forward`, whose attention contexts break the graph where they attend."""
    kind = _uncompiled()

    def outside(argument: Any) -> Any:
        return kind(argument) if hasattr(argument, "attend") else argument

    @wraps(forward)
    def run(*arguments: Any, **named: Any) -> Tensor:
        return forward(*map(outside, arguments), **{name: outside(value) for name, value in named.items()})

    return run


@cache
def _uncompiled() -> type[_PassesOn]:
    """The class of contexts whose methods are not compiled; made late, as naming them imports the compiler."""
    methods = {name: torch.compiler.disable(getattr(_PassesOn, name)) for name in ("lengths", "attend", "cross_attend")}
    return type("_Uncompiled", (_PassesOn,), methods)


class _PassesOn:
    """An attention context that is another."""

    def __init__(self, context: AttentionContext) -> None:
        self.context = context

    @property
    def latent(self) -> bool:
        """As the context's."""
        return self.context.latent

    @property
    def cu_seqlens(self) -> Tensor:
        """As the context's."""
        return self.context.cu_seqlens

    def lengths(self) -> Tensor:
        """As the context's."""
        return self.context.lengths()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """As the context's."""
        return self.context.attend(layer, query, key, value, scores)

    def cross_attend(
        self, layer: int, query: Tensor, key: Tensor | None, value: Tensor | None, scores: Scores
    ) -> Tensor:
        """As the context's."""
        return self.context.cross_attend(layer, query, key, value, scores)
