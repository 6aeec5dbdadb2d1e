"""Files of quantized weights seen as the plain files that they stand for, and as the grids that they hold.

A format says which modules it has quantized and reads one of them; everything else is here. Knows no format.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lmworks.core.errors import CheckpointError
from lmworks.kernels.quantized_matmul import MIDDLE, pack_nibbles
from lmworks.models.hub.rules import Shape
from lmworks.models.hub.tensor_source import TensorSource
from lmworks.nn.quantized import QuantizedWeight
from lmworks.nn.quantized_grid import num_groups

WEIGHT = ".weight"
PARTS = ("", "_scale", "_zero")
"""What follows a weight's name in the names of its grid's tensors, ours and in `GridParts`."""

MEASURED = re.compile(r".*\.(input|output|activation|[kvq])_(scale|zero_point|global_scale|scale_ub)")
"""Names of activations' and caches' ranges, which nothing here uses."""


@dataclass(frozen=True)
class GridKind:
    """What two matrices must share to be parts of one."""

    bits: int
    group_size: int
    zero: bool

    @classmethod
    def of(cls, grid: QuantizedWeight) -> GridKind:
        """The kind of a matrix in memory."""
        return cls(grid.bits, grid.group_size, grid.zero is not None)


class GridSource(TensorSource, Protocol):
    """A source that knows which of its tensors are on grids; `tensor` gives them as floating point."""

    def kind(self, name: str) -> GridKind | None:
        """The grid of a tensor; None where it has none that `QuantizedWeight` expresses."""
        ...

    def grid(self, name: str) -> QuantizedWeight:
        """Read a tensor that has a kind."""
        ...


class QuantizedSource(ABC):
    """A source in which the tensors of each quantized module appear as the one `weight` that they make.

    Args:
        source: the tensors as stored.
    """

    parts: tuple[str, ...]
    """What follows a quantized module's name in the names of its tensors, `.weight` apart."""

    def __init__(self, source: TensorSource) -> None:
        self.name, self._source = source.name, source
        stored = source.shapes()
        self.modules = frozenset(self._modules(stored))
        """Names (theirs) of the quantized modules."""
        hidden = {f"{module}{part}" for module in self.modules for part in self.parts}
        self._shapes = {n: s for n, s in stored.items() if n not in hidden and not MEASURED.fullmatch(n)}
        self._shapes |= {f"{m}{WEIGHT}": self._shape(m) for m in sorted(self.modules)}

    def shapes(self) -> Mapping[str, Shape]:
        """See `TensorSource`."""
        return self._shapes

    def tensor(self, name: str) -> Tensor:
        """See `TensorSource`."""
        module = self._module(name)
        return self._source.tensor(name) if module is None else self._dequantized(module)

    def kind(self, name: str) -> GridKind | None:
        """See `GridSource`."""
        module = self._module(name)
        return None if module is None else self._kind(module)

    def grid(self, name: str) -> QuantizedWeight:
        """See `GridSource`."""
        module = self._module(name)
        assert module is not None
        return self._grid(module)

    @abstractmethod
    def _modules(self, names: Collection[str]) -> Iterable[str]:
        """Which modules are quantized."""

    @abstractmethod
    def _shape(self, module: str) -> Shape:
        """[out, in] of a quantized module."""

    @abstractmethod
    def _kind(self, module: str) -> GridKind | None:
        """See `GridSource.kind`."""

    @abstractmethod
    def _grid(self, module: str) -> QuantizedWeight:
        """See `GridSource.grid`."""

    def _dequantized(self, module: str) -> Tensor:
        """[out, in] in float32."""
        return self._grid(module).dequantized()

    def _module(self, name: str) -> str | None:
        module = name.removesuffix(WEIGHT)
        return module if name.endswith(WEIGHT) and module in self.modules else None

    def _part(self, module: str, part: str) -> Tensor:
        """A tensor of a module.

        Raises:
            CheckpointError: the file lacks it.
        """
        if not self._has(module, part):
            raise CheckpointError(f"{self.name} lacks {module}{part}", "Restore the original files")
        return self._source.tensor(f"{module}{part}")

    def _has(self, module: str, part: str) -> bool:
        return f"{module}{part}" in self._source.shapes()

    def _part_shape(self, module: str, part: str) -> Shape:
        if not self._has(module, part):
            raise CheckpointError(f"{self.name} lacks {module}{part}", "Restore the original files")
        return tuple(self._source.shapes()[f"{module}{part}"])

    def _group_size(self, module: str, columns: int, groups: int, declared: int) -> int:
        """Columns to a scale, from how many scales a row has.

        Args:
            module: for the error.
            columns: of the matrix.
            groups: scales in a row.
            declared: group size of the configuration; 0 for whole rows.
        """
        if groups == 1:
            return 0
        if declared and num_groups(columns, declared) == groups:
            return declared
        if groups and columns % groups == 0:
            return columns // groups
        raise CheckpointError(
            f"{self.name}: {module} has {groups} scales for rows of {columns} columns, which its group size of "
            f"{declared or 'a whole row'} does not explain",
            "Restore the config.json that belongs to these weights",
        )


class GridParts:
    """A source in which chosen tensors appear as their grids: stored values, scales and zeros.

    Args:
        source: knows the grids.
        kept: names of the chosen tensors.
    """

    def __init__(self, source: GridSource, kept: Collection[str]) -> None:
        self.name, self._source, self._parts = source.name, source, dict[str, tuple[str, str]]()
        self._shapes = dict(source.shapes())
        for name in kept:
            kind = source.kind(name)
            assert kind is not None
            rows, columns = self._shapes[name]
            self._shapes[name] = (rows, columns if kind.bits == 8 else -(-columns // 2))
            for part in PARTS if kind.zero else PARTS[:-1]:
                self._parts[f"{name}{part}"] = name, part
                if part:
                    self._shapes[f"{name}{part}"] = (rows, num_groups(columns, kind.group_size))

    def shapes(self) -> Mapping[str, Shape]:
        """See `TensorSource`."""
        return self._shapes

    def tensor(self, name: str) -> Tensor:
        """See `TensorSource`."""
        if name not in self._parts:
            return self._source.tensor(name)
        owner, part = self._parts[name]
        grid = self._source.grid(owner)
        if not part:
            return grid.values if grid.bits == 8 else pack_nibbles(grid.values)
        tensor = grid.scale if part == PARTS[1] else grid.zero
        assert tensor is not None
        return tensor


def without_idle_zero(values: Tensor, scale: Tensor, zero: Tensor, bits: int, group_size: int) -> QuantizedWeight:
    """A grid whose zeros, small whole numbers in any type, are left out where they all say what none would."""
    idle = bool((zero == MIDDLE[bits]).all())
    return QuantizedWeight(values, scale, None if idle else zero.to(scale.dtype), bits, group_size)


def is_sorted_by_group(g_idx: Tensor, group_size: int) -> bool:
    """Whether column j belongs to group j // group_size, as where columns were not reordered."""
    return bool(torch.equal(g_idx.long(), torch.arange(len(g_idx)) // group_size)) if group_size else not g_idx.any()
