"""Products with weights packed for this processor: float32, bfloat16, or 8 and 4 bits on a grid.

A row's product is the same bits alone or among many. With integers the activations are rounded too: to 8 bits with one
scale a row, or one a row and group where the weights have groups. One torch operation, `lmworks::packed_matmul`, so
that eager code, `torch.compile` and export see one node; `packed_matmul_reference` is the arithmetic as it is written,
and what runs without a compiler. For serving: there is no gradient. Knows no module and no model.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from lmworks.core.errors import ConfigError
from lmworks.kernels.native.library import library
from lmworks.kernels.native.memory import weight_memory

GROUP_STEP = 32
"""Groups are multiples of this."""
MOST_INPUTS = 1 << 17
"""Beyond this many inputs to a scale, sums of products of 8 bits could leave 32 bits."""
MIDDLE = 8
"""What an unsigned value of 4 bits counts from unless zero points say otherwise."""
TINY = 1e-30
"""Activations that are all smaller are taken for zero."""


class WeightKind(IntEnum):
    """See `native/linear.h`."""

    F32 = 0
    BF16 = 1
    W8 = 2
    W8G = 3
    W4G = 4


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A matrix [out, in] and what is added to its product."""

    kind: WeightKind
    out_features: int
    in_features: int
    group_size: int
    """Inputs that share a scale; 0 where there is one per output, or none."""
    packed: Tensor
    """Bytes, uint8; meant for this process: the layout follows the processor."""
    bias: Tensor | None
    """[out] float32."""

    @property
    def exact(self) -> bool:
        """Whether neither weights nor activations are rounded."""
        return self.kind is WeightKind.F32


def pack_weight(weight: Tensor, bias: Tensor | None = None) -> PackedWeight:
    """Pack a floating-point matrix: bfloat16 stays, all else becomes float32.

    Args:
        weight: [out, in].
        bias: [out].
    """
    if weight.dtype == torch.bfloat16:
        return _pack(WeightKind.BF16, weight, None, None, 0, bias)
    return _pack(WeightKind.F32, weight.float(), None, None, 0, bias)


def pack_grid(
    values: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group_size: int, bias: Tensor | None = None
) -> PackedWeight:
    """Pack a matrix on a grid, w = (value - zero) · scale.

    Scales and zero points of groups take half the memory where float16 holds them all exactly.

    Args:
        values: [out, in] int8 of 8 bits, or uint8 from 0 to 15 of 4.
        scale: [out, groups]; the last group may be shorter.
        zero: [out, groups] of 4 bits, in units of the values; None is 8.
        bits: 8 or 4.
        group_size: inputs that share a scale, 0 for whole rows.
        bias: [out].

    Raises:
        ConfigError: there is no native product with such a grid.
    """
    if not packable(bits, group_size, zero):
        raise ConfigError(
            f"a grid of {bits} bits in groups of {group_size}{' with zero points' if zero is not None else ''} "
            "cannot be packed",
            f"Use 8 bits without zero points or 4 bits, in groups of a multiple of {GROUP_STEP}",
        )
    columns = values.shape[1]
    if columns > MOST_INPUTS and not group_size:
        raise ConfigError(f"{columns} inputs to one scale are too many", f"Use groups, or at most {MOST_INPUTS} inputs")
    if bits == 4:
        whole = -(-columns // GROUP_STEP) * GROUP_STEP
        return _pack(WeightKind.W4G, values.to(torch.uint8), scale, zero, group_size or whole, bias)
    return _pack(WeightKind.W8G if group_size else WeightKind.W8, values.to(torch.int8), scale, None, group_size, bias)


def packable(bits: int, group_size: int, zero: Tensor | None) -> bool:
    """Whether the native products have such a grid."""
    return group_size >= 0 and group_size % GROUP_STEP == 0 and (bits == 4 or (bits == 8 and zero is None))


def packed_matmul(x: Tensor, weight: PackedWeight) -> Tensor:
    """Compute x @ weightᵀ + bias.

    Args:
        x: [..., in] float32 or bfloat16.
        weight: packed.

    Returns:
        [..., out] in the type of `x`; sums and bias are float32. A row (group) of activations that holds an infinity
        or NaN makes its results NaN where the weights are integers.
    """
    arguments = (
        x, weight.packed, weight.bias, weight.kind, weight.out_features, weight.in_features, weight.group_size,
    )  # fmt: skip
    if type(x) is Tensor and x.is_cpu and not torch.compiler.is_compiling():
        return _on_cpu(*arguments)  # past torch's dispatcher, which costs more than a small product
    result: Tensor = torch.ops.lmworks.packed_matmul(*arguments)
    return result


def packed_matmul_reference(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    group_size: int = 0,
    bias: Tensor | None = None,
) -> Tensor:
    """The product as it is written, with the activations rounded as the fast paths round them; the oracle.

    Args:
        x: [..., in].
        weight: [out, in] floating-point, int8, or uint8 from 0 to 15.
        scale: [out, groups] of integers, or [out].
        zero: [out, groups] of unsigned integers; None is 8.
        group_size: inputs that share a scale, 0 for whole rows.
        bias: [out].

    Returns:
        [..., out] in the type of `x`, computed in float32.
    """
    rows, dense = x.float(), weight.float()
    if scale is None:
        rows = x.to(weight.dtype).float()
    else:
        in_features = weight.shape[1]
        size = group_size or in_features

        def spread(numbers: Tensor) -> Tensor:
            """[out, groups] -> [out, in]."""
            return numbers.float().view(len(weight), -1).repeat_interleave(size, 1)[:, :in_features]

        if weight.dtype == torch.uint8:
            dense = dense - (MIDDLE if zero is None else spread(zero))
        dense = dense * spread(scale)
        values, row_scale = quantize_activations(rows, group_size)
        rows = (values.float() * row_scale).flatten(-2)[..., :in_features]
    return F.linear(rows, dense, None if bias is None else bias.float()).to(x.dtype)


def quantize_activations(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Round activations to 8 bits: the largest of a row, or of a row's group, becomes 127.

    Args:
        x: [..., in] float32.
        group_size: values that share a scale, 0 for whole rows.

    Returns:
        Values [..., groups, group] int8, padded with zeros, and scales [..., groups, 1] float32. A scale is NaN or
        infinite where its values hold such a number.
    """
    size = group_size or x.shape[-1]
    padded = F.pad(x, (0, -x.shape[-1] % size))
    grouped = padded.view(*x.shape[:-1], -1, size)
    most = grouped.abs().amax(-1, keepdim=True)
    usable = (most >= TINY) & most.isfinite()
    values = (grouped * torch.where(usable, 127 / most, 0.0)).round_().nan_to_num_(0.0).to(torch.int8)
    return values, torch.where(most < TINY, 0.0, most / 127)


def _pack(
    kind: WeightKind, weight: Tensor, scale: Tensor | None, zero: Tensor | None, group_size: int, bias: Tensor | None
) -> PackedWeight:
    weight = weight.detach().contiguous()
    scale = None if scale is None else scale.detach().float().contiguous()
    zero = None if zero is None else zero.detach().float().contiguous()
    out_features, in_features = weight.shape
    shape = kind, out_features, in_features, group_size
    native = _native()
    if native is None:
        packed = _concatenated(weight, scale, zero)
    else:
        packed = weight_memory(native.lm_linear_packed_bytes(*shape, _address(scale), _address(zero)))
        native.lm_linear_pack(*shape, weight.data_ptr(), _address(scale), _address(zero), packed.data_ptr())
    return PackedWeight(*shape, packed, None if bias is None else bias.detach().float().contiguous())


def _concatenated(weight: Tensor, scale: Tensor | None, zero: Tensor | None) -> Tensor:
    """What is packed for PyTorch: the numbers as they are, wide ones first."""
    if scale is not None and weight.dtype == torch.uint8 and zero is None:
        zero = torch.full_like(scale, MIDDLE)
    parts = [part for part in (scale, zero, weight) if part is not None]
    return torch.cat([part.flatten().view(torch.uint8) for part in parts])


def _in_torch(
    x: Tensor, packed: Tensor, bias: Tensor | None, kind: int, out_features: int, in_features: int, group_size: int
) -> Tensor:
    """The product where there are no native operations, with what `_concatenated` made."""
    if kind in (WeightKind.F32, WeightKind.BF16):
        weight = packed.view(torch.bfloat16 if kind == WeightKind.BF16 else torch.float32)
        return packed_matmul_reference(x, weight.view(out_features, in_features), bias=bias)
    groups = -(-in_features // group_size) if group_size else 1
    wide = 4 * out_features * groups
    scale = packed[:wide].view(torch.float32).view(out_features, groups)
    if kind == WeightKind.W8:
        weight = packed[wide:].view(torch.int8).view(out_features, in_features)
        values, row_scale = quantize_activations(x.float().reshape(-1, in_features), 0)
        sums = torch._int_mm(values.flatten(1), weight.t()).float() * scale.t() * row_scale.flatten(1)
        return (sums if bias is None else sums + bias).to(x.dtype).view(*x.shape[:-1], out_features)
    if kind == WeightKind.W8G:
        weight = packed[wide:].view(torch.int8).view(out_features, in_features)
        return packed_matmul_reference(x, weight, scale, None, group_size, bias)
    zero = packed[wide : 2 * wide].view(torch.float32).view(out_features, groups)
    return packed_matmul_reference(x, packed[2 * wide :].view(out_features, in_features), scale, zero, group_size, bias)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@cache
def _native() -> ctypes.CDLL | None:
    loaded = library()
    if loaded is not None:
        number, pointer = ctypes.c_int, ctypes.c_void_p
        shape = [number] * 4
        loaded.lm_linear_packed_bytes.restype = ctypes.c_int64
        loaded.lm_linear_packed_bytes.argtypes = [*shape, pointer, pointer]
        loaded.lm_linear_pack.restype = None
        loaded.lm_linear_pack.argtypes = [*shape, pointer, pointer, pointer, pointer]
        loaded.lm_linear.restype = None
        loaded.lm_linear.argtypes = [*shape, pointer, pointer, pointer, pointer, ctypes.c_int64]
    return loaded


_OPERATIONS = torch.library.Library("lmworks", "FRAGMENT")
_OPERATIONS.define(
    "packed_matmul(Tensor x, Tensor packed, Tensor? bias, int kind, int out_features, int in_features, "
    "int group_size) -> Tensor"
)


@torch.library.impl(_OPERATIONS, "packed_matmul", "CPU")
def _on_cpu(
    x: Tensor, packed: Tensor, bias: Tensor | None, kind: int, out_features: int, in_features: int, group_size: int
) -> Tensor:
    if x.shape[-1] != in_features:
        raise ValueError(f"activations of {x.shape[-1]} features do not fit a weight of {in_features}")
    native = _native()
    if native is None:
        return _in_torch(x, packed, bias, kind, out_features, in_features, group_size)
    count = x.numel() // in_features
    plain = x.dtype == torch.float32
    rows = x if plain and x.is_contiguous() else x.float().contiguous()
    y = torch.empty((count, out_features), dtype=torch.float32)
    native.lm_linear(
        kind, out_features, in_features, group_size, packed.data_ptr(), None if bias is None else bias.data_ptr(),
        rows.data_ptr(), y.data_ptr(), count,
    )  # fmt: skip
    return y if plain and x.dim() == 2 else y.to(x.dtype).view(*x.shape[:-1], out_features)


@torch.library.register_fake("lmworks::packed_matmul")  # type: ignore[untyped-decorator]
def _fake(
    x: Tensor, packed: Tensor, bias: Tensor | None, kind: int, out_features: int, in_features: int, group_size: int
) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)
