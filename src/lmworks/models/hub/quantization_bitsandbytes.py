"""bitsandbytes' files: 4-bit code books (NF4, FP4) with scales by block, and int8 rows. Knows no model.

Four bits index a table of sixteen numbers that are not equally spaced (QLoRA, arXiv:2305.14314), so they are read as
floating point. Their scales may be quantized once more.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from lmworks.core.errors import CheckpointError
from lmworks.models.hub.quantization_source import WEIGHT, GridKind, QuantizedSource
from lmworks.models.hub.rules import Shape
from lmworks.nn.quantized import QuantizedWeight

STATES = tuple(f".weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
ROW_SCALES = ".SCB"
"""Largest magnitude of each row of an int8 matrix."""


class BitsAndBytesSource(QuantizedSource):
    """Weights as bitsandbytes writes them, both kinds in one file or not."""

    parts = (
        *STATES, ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map",
        ROW_SCALES, ".weight_format",
    )  # fmt: skip

    def _modules(self, names: Collection[str]) -> Iterable[str]:
        markers = (*STATES, ROW_SCALES)
        return {name.removesuffix(marker) for marker in markers for name in names if name.endswith(marker)}

    def _shape(self, module: str) -> Shape:
        if self._has(module, ROW_SCALES):
            return self._part_shape(module, WEIGHT)
        shape = self._state(module)["shape"]
        return tuple(shape)

    def _kind(self, module: str) -> GridKind | None:
        return GridKind(8, 0, zero=False) if self._has(module, ROW_SCALES) else None

    def _grid(self, module: str) -> QuantizedWeight:
        weight, largest = self._part(module, WEIGHT), self._part(module, ROW_SCALES)
        layout = int(self._part(module, ".weight_format")) if self._has(module, ".weight_format") else 0
        if weight.dtype != torch.int8 or largest.shape != weight.shape[:1] or layout != 0:
            raise CheckpointError(
                f"{self.name}: {module} is {str(weight.dtype).removeprefix('torch.')} in layout {layout} with "
                f"{len(largest)} scales, not int8 rows",
                "Write the checkpoint anew with a current bitsandbytes",
            )
        return QuantizedWeight(weight, (largest.float() / 127)[:, None], None, 8, 0)

    def _dequantized(self, module: str) -> Tensor:
        if self._has(module, ROW_SCALES):
            return super()._dequantized(module)
        state, scales = self._state(module), self._part(module, ".weight.absmax")
        if self._has(module, ".weight.nested_absmax"):
            table = self._part(module, ".weight.nested_quant_map").float()
            largest = self._part(module, ".weight.nested_absmax").float()
            blocks = largest.repeat_interleave(state["nested_blocksize"])[: len(scales)]
            scales = table[scales.long()] * blocks + state["nested_offset"]
        packed = self._part(module, WEIGHT).flatten()
        nibbles = torch.stack([packed >> 4, packed & 15], 1).flatten()  # the first is the higher
        table = self._part(module, ".weight.quant_map").float()
        count = state["shape"][0] * state["shape"][1]
        if not count <= len(nibbles) <= count + 1 or len(scales) != -(-count // state["blocksize"]):
            raise CheckpointError(
                f"{self.name}: {module} holds {len(nibbles)} values and {len(scales)} scales for a matrix of "
                f"{state['shape']}",
                "Restore the original files",
            )
        factors = scales.float().repeat_interleave(state["blocksize"])[:count]
        return (table[nibbles[:count].long()] * factors).view(state["shape"])

    def _state(self, module: str) -> dict[str, Any]:
        """Shape and block sizes: JSON in a tensor of bytes."""
        name = next(s for s in STATES if self._has(module, s))
        try:
            state = json.loads(bytes(self._part(module, name).tolist()))
            sizes = [state["blocksize"], *state["shape"]]
            if self._has(module, ".weight.nested_absmax"):
                sizes.append(state["nested_blocksize"])
                state["nested_offset"] = float(state["nested_offset"])
            if len(state["shape"]) != 2 or not all(isinstance(n, int) and n > 0 for n in sizes):
                raise ValueError(f"impossible sizes {sizes}")
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.name}: {module}{name} is damaged: {error!r}", "Restore the original files"
            ) from None
        assert isinstance(state, dict)
        return state
