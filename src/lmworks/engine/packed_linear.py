"""Linear maps whose bfloat16 weights lie in memory as oneDNN's matrix product wants them.

`F.linear` rearranges a bfloat16 weight on every call on a CPU; arranged once, a decode step takes half the time and the
result is the same bit for bit. For serving only: there is no gradient. Knows no request.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

READ_BY_OTHERS = frozenset({"kv_b_proj"})
"""Latent attention absorbs this one into queries and outputs."""


class PackedLinear(nn.Module):
    """A served `nn.Linear`.

    Args:
        linear: bfloat16, on the CPU; its weight is copied.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.shape = linear.weight.shape
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.pack(linear.weight)

    def pack(self, weight: Tensor) -> None:
        """Take on other weights, [out, in]."""
        weight = weight.detach().to(torch.bfloat16).contiguous()
        # A buffer could hold it, but neither state dicts nor copies know its layout.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out]."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return result


def packs() -> bool:
    """Whether this machine has bfloat16 products and the library to arrange weights for them."""
    return torch._C._has_mkldnn and torch.cpu._is_avx512_bf16_supported()


def pack_linears(model: nn.Module) -> None:
    """Replace every bfloat16 linear map of a model that nobody else uses, but those whose weight others read."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if name in READ_BY_OTHERS:
                continue
            if type(child) is nn.Linear and child.weight.dtype == torch.bfloat16:
                setattr(parent, name, PackedLinear(child))
