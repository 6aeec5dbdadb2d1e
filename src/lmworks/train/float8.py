"""Training with 8-bit products: which linear maps of a model take them, and the time they do.

Those inside of layers, whose sizes are multiples of 16; not embeddings, heads, norms, routers and routed experts, nor
attention. Works on whatever stands in a `ModuleList` called `layers`. Knows no model class; the product itself is
`kernels/float8_linear.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn

from lmworks.core.errors import ConfigError, ParallelError
from lmworks.kernels.float8_linear import ALIGNMENT, float8_linear, require_float8
from lmworks.parallel.config import ParallelConfig
from lmworks.train.activation_checkpointing import layer_names, replaced_forward


@contextmanager
def computing_in_float8(model: nn.Module) -> Iterator[None]:
    """While the block runs, the linear maps inside the layers of `model` multiply 8-bit floats, forward and backward.

    Args:
        model: has its blocks in lists called `layers`; its weights may be gathered only when a layer runs.
    """
    with ExitStack() as stack:
        for linear in float8_linears(model):
            stack.enter_context(replaced_forward([linear], partial(_in_float8, linear)))
        yield


def check_float8(model: nn.Module, parallel: ParallelConfig) -> None:
    """Check that a run can compute in float8 before it starts.

    Raises:
        ConfigError: the device has no 8-bit products, or the model no linear map for them.
        ParallelError: matrices are to be divided.
    """
    require_float8(next(model.parameters()).device)
    if not float8_linears(model):
        raise ConfigError(
            f"precision float8 is for linear maps inside of layers whose sizes are multiples of {ALIGNMENT}, and the "
            "model has none",
            "Set `precision: bfloat16`, or other sizes",
        )
    if parallel.tensor > 1:
        raise ParallelError(
            f"precision float8 finds one factor for each whole matrix, and tensor {parallel.tensor} divides them",
            "Set `precision: bfloat16`, or share the work by `shard` instead of `tensor`",
        )


def float8_linears(model: nn.Module) -> list[nn.Linear]:
    """The linear maps that take 8-bit products."""
    found = {
        id(module): module
        for name in layer_names(model)
        for module in model.get_submodule(name).modules()
        if type(module) is nn.Linear and module.in_features % ALIGNMENT == 0 and module.out_features % ALIGNMENT == 0
    }
    return list(found.values())


def _in_float8(linear: nn.Linear, _: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return partial(_forward, linear)


def _forward(linear: nn.Linear, x: Tensor) -> Tensor:
    return float8_linear(x, linear.weight, linear.bias)
