"""GPTQ and AWQ files: [in, out] integers packed into int32, with scales and zero points by group of input columns.

GPTQ packs along the input and AWQ along the output, in an order of its own (arXiv:2210.17323, arXiv:2306.00978).
Knows no model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.models.hub.quantization_source import GridKind, QuantizedSource, is_sorted_by_group, without_idle_zero
from lmworks.models.hub.rules import Shape
from lmworks.models.hub.tensor_source import TensorSource
from lmworks.nn.quantized import QuantizedWeight
from lmworks.nn.quantized_grid import num_groups

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Nibble i of a word holds column `AWQ_ORDER[i]` of the word's eight."""


class GPTQSource(QuantizedSource):
    """Weights as GPTQ's tools write them.

    A module whose columns were reordered (`desc_act`) has groups that are not consecutive; such a matrix is on no
    grid of ours and is read as floating point.

    Args:
        source: the tensors as stored.
        config: the `quantization_config` or `quantize_config.json`.

    Raises:
        ConfigError: a layout that is not read.
    """

    parts = (".qweight", ".qzeros", ".scales", ".g_idx")

    def __init__(self, source: TensorSource, config: Mapping[str, Any]) -> None:
        layout = config.get("checkpoint_format") or "gptq"
        if layout not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
            raise ConfigError(f"GPTQ's layout {layout!r} is not read", "Use a checkpoint of the layout gptq or gptq_v2")
        self._zero_offset = 1 if layout == "gptq" else 0  # the first layout stores zero points less one
        self._declared = _group_size(config)
        super().__init__(source)

    def _modules(self, names: Collection[str]) -> Iterable[str]:
        return (n.removesuffix(".qweight") for n in names if n.endswith(".qweight"))

    def _bits(self, module: str) -> int:
        """From the shapes, because tools may choose it by module."""
        packed, out = self._part_shape(module, ".qzeros")[-1], self._part_shape(module, ".scales")[-1]
        bits = packed * 32 // max(out, 1)
        if bits not in (4, 8) or packed * 32 != bits * out:
            raise ConfigError(
                f"{self.name}: {module} has weights of {packed * 32 / max(out, 1):g} bits; read are 4 and 8",
                "Use a checkpoint of 4 or 8 bits",
            )
        return bits

    def _shape(self, module: str) -> Shape:
        rows, out = self._part_shape(module, ".qweight")
        return out, rows * 32 // self._bits(module)

    def _kind(self, module: str) -> GridKind | None:
        group_size = self._groups(module)
        if self._has(module, ".g_idx") and not is_sorted_by_group(self._part(module, ".g_idx"), group_size):
            return None
        bits = self._bits(module)
        return GridKind(bits, group_size, bool((self._zeros(module, bits) != 1 << (bits - 1)).any()))

    def _grid(self, module: str) -> QuantizedWeight:
        bits, group_size = self._bits(module), self._groups(module)
        values, zeros = _unpack(self._part(module, ".qweight").T, bits), self._zeros(module, bits)
        if bits == 8:  # theirs are unsigned
            values, zeros = (values.to(torch.int16) - 128).to(torch.int8), zeros - 128
        return without_idle_zero(values, self._part(module, ".scales").T.contiguous(), zeros, bits, group_size)

    def _dequantized(self, module: str) -> Tensor:
        if not self._has(module, ".g_idx"):
            return super()._dequantized(module)
        bits, group = self._bits(module), self._part(module, ".g_idx").long()
        scales = self._part(module, ".scales").float().T
        if len(group) != self._shape(module)[1] or not 0 <= int(group.min()) <= int(group.max()) < scales.shape[1]:
            raise CheckpointError(f"{self.name}: {module}.g_idx does not fit its scales", "Restore the original files")
        values = _unpack(self._part(module, ".qweight").T, bits)
        return (values.float() - self._zeros(module, bits)[:, group]) * scales[:, group]

    def _groups(self, module: str) -> int:
        groups = self._part_shape(module, ".scales")[0]
        return self._group_size(module, self._shape(module)[1], groups, self._declared)

    def _zeros(self, module: str, bits: int) -> Tensor:
        """[out, groups] float32."""
        stored = _unpack(self._part(module, ".qzeros"), bits).T
        # A zero point of 0 was stored as the largest number, so the sum wraps around.
        return ((stored.to(torch.int16) + self._zero_offset) & ((1 << bits) - 1)).float()


class AWQSource(QuantizedSource):
    """Weights as AWQ's tools write them for matrix products: 4 bits, version `gemm`.

    Args:
        source: the tensors as stored.
        config: the `quantization_config` or `quant_config.json`.

    Raises:
        ConfigError: a layout that is not read.
    """

    parts = (".qweight", ".qzeros", ".scales")

    def __init__(self, source: TensorSource, config: Mapping[str, Any]) -> None:
        version = str(config.get("version") or "gemm").lower()
        bits = config.get("bits", config.get("w_bit", 4))
        if version != "gemm" or bits != 4:
            raise ConfigError(
                f"AWQ's version {version!r} with {bits} bits is not read", "Use one of version gemm with 4 bits"
            )
        self._declared = _group_size(config)
        super().__init__(source)

    def _modules(self, names: Collection[str]) -> Iterable[str]:
        return (n.removesuffix(".qweight") for n in names if n.endswith(".qweight"))

    def _shape(self, module: str) -> Shape:
        columns, packed = self._part_shape(module, ".qweight")
        return packed * 8, columns

    def _kind(self, module: str) -> GridKind:
        zero = bool((self._zeros(module) != 8).any())
        return GridKind(4, self._groups(module), zero)

    def _grid(self, module: str) -> QuantizedWeight:
        values = _awq_unpack(self._part(module, ".qweight")).T.contiguous()
        scales = self._part(module, ".scales").T.contiguous()
        return without_idle_zero(values, scales, self._zeros(module), 4, self._groups(module))

    def _groups(self, module: str) -> int:
        groups, columns = self._part_shape(module, ".scales")[0], self._shape(module)[1]
        return self._group_size(module, columns, groups, self._declared)

    def _zeros(self, module: str) -> Tensor:
        """[out, groups] float32; 8 throughout where a file has none."""
        if not self._has(module, ".qzeros"):
            out, columns = self._shape(module)
            return torch.full((out, num_groups(columns, self._groups(module))), 8.0)
        return _awq_unpack(self._part(module, ".qzeros")).T.float().contiguous()


def _group_size(config: Mapping[str, Any]) -> int:
    """Of the configuration; -1 and none are whole columns, 0 here."""
    size = config.get("group_size", config.get("q_group_size"))
    return size if isinstance(size, int) and size > 0 else 0


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """[n, m] int32 -> [n, m · 32 / bits] uint8, the lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((packed[:, :, None] >> shifts) & ((1 << bits) - 1)).to(torch.uint8).flatten(1)


def _awq_unpack(packed: Tensor) -> Tensor:
    """[n, m] int32 -> [n, 8 m] uint8."""
    inverse = torch.tensor(AWQ_ORDER).argsort()
    return _unpack(packed, 4).unflatten(1, (-1, 8))[:, :, inverse].flatten(1)
