"""act(gate) · up on a GPU in one pass over memory. The formulas are in `kernels.gated_activation`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmworks.kernels.triton.arithmetic import tanh

BLOCK = 1024


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """Multiply activations by their gates.

    Args:
        gate: any shape and floating type.
        up: as `gate`.
        activation: a name of `kernels.gated_activation.ACTIVATIONS`.

    Returns:
        As `gate`, computed in float32 and rounded once.
    """
    gate, up = gate.contiguous(), up.contiguous()
    result = torch.empty_like(gate)
    if count := gate.numel():
        _gate_block[(triton.cdiv(count, BLOCK),)](gate, up, result, count, ACTIVATION=activation, BLOCK=BLOCK)
    return result


@triton.jit(do_not_specialize=["count"])
def _gate_block(
    gate: tl.tensor, up: tl.tensor, result: tl.tensor, count: tl.tensor, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    x = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_pytorch_tanh":
        x = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == "quick_gelu":
        x = x * tl.sigmoid(1.702 * x)
    elif ACTIVATION == "relu":
        x = tl.maximum(x, 0.0)
    else:
        tl.static_assert(ACTIVATION == "relu2", "an activation without a kernel")
        x = tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    product = x * tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + place, product.to(result.dtype.element_ty), mask=inside)
