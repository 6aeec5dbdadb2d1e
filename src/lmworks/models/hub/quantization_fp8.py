"""Weights in 8-bit floating point with scales by matrix, row or block; read as floating point. Knows no model.

A value of e4m3 is a value of bfloat16; its product with the scale is computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.models.hub.quantization_source import WEIGHT, GridKind, QuantizedSource
from lmworks.models.hub.rules import Shape
from lmworks.models.hub.tensor_source import TensorSource
from lmworks.nn.quantized import QuantizedWeight

SCALES = (".weight_scale_inv", ".weight_scale")
"""Both are factors; the first is called after what it was divided by."""


class FP8Source(QuantizedSource):
    """Weights as DeepSeek's, Qwen's and fbgemm's files hold them.

    Args:
        source: the tensors as stored.
        config: the `quantization_config`.

    Raises:
        ConfigError: blocks of an impossible size.
    """

    parts = SCALES

    def __init__(self, source: TensorSource, config: Mapping[str, Any]) -> None:
        block = config.get("weight_block_size")
        if block is not None and not (
            isinstance(block, list) and len(block) == 2 and all(isinstance(b, int) and b > 0 for b in block)
        ):
            raise ConfigError(f"weight_block_size = {block!r} is not a pair of positive numbers", "Correct config.json")
        self._block = None if block is None else (block[0], block[1])
        super().__init__(source)

    def _modules(self, names: Collection[str]) -> Iterable[str]:
        scaled = {name.removesuffix(scale) for scale in SCALES for name in names if name.endswith(scale)}
        return (module for module in scaled if f"{module}{WEIGHT}" in names)

    def _shape(self, module: str) -> Shape:
        return self._part_shape(module, WEIGHT)

    def _kind(self, module: str) -> GridKind | None:
        return None

    def _grid(self, module: str) -> QuantizedWeight:
        raise AssertionError("8-bit floating point is on no grid")

    def _dequantized(self, module: str) -> Tensor:
        scale = next(s for s in SCALES if self._has(module, s))
        return scaled(self._part(module, WEIGHT), self._part(module, scale), self._block, f"{self.name}: {module}")


def scaled(weight: Tensor, scale: Tensor, block: tuple[int, int] | None, name: str) -> Tensor:
    """8-bit floating point times its scales, in float32.

    Args:
        weight: [out, in].
        scale: one number, [out], [out, 1], or one per block of the matrix.
        block: rows and columns of a block.
        name: how an error calls the module.

    Raises:
        CheckpointError: the weights are no 8-bit floating point, or the scales do not fit them.
    """
    rows, columns = weight.shape
    if not weight.is_floating_point() or weight.itemsize != 1:
        raise CheckpointError(
            f"{name} has weights of {str(weight.dtype).removeprefix('torch.')} with a scale, where 8-bit floating "
            "point was announced",
            "Restore the config.json that belongs to these weights",
        )
    factor = scale.float()
    if factor.numel() == 1:
        factor = factor.reshape(1, 1)
    elif factor.shape in ((rows,), (rows, 1)):
        factor = factor.reshape(rows, 1)
    elif block is not None and factor.shape == (-(-rows // block[0]), -(-columns // block[1])):
        factor = factor.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    else:
        raise CheckpointError(
            f"{name} has scales of shape {list(scale.shape)} for weights of {[rows, columns]} in blocks of {block}",
            "Restore the config.json that belongs to these weights",
        )
    return weight.float() * factor
