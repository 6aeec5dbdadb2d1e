"""Weight rules: how a family's tensors are named and laid out on disk, as invertible data.

A rule names some of our tensors, some of theirs, and the operations that lead from theirs to ours. Read
backwards it exports. Knows no file format and no family.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Operation(Protocol):
    """One invertible step between their tensors and ours."""

    def load(self, tensors: list[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """Towards ours; `shapes` are those of our tensors in the rule's order."""
        ...

    def export(self, tensors: list[Tensor]) -> list[Tensor]:
        """Towards theirs."""
        ...


@dataclass(frozen=True)
class Transpose:
    """Swap rows and columns of every matrix: `Conv1D` keeps [in, out]. Vectors pass unchanged."""

    def load(self, tensors: list[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Operation`."""
        return [t.mT if t.ndim > 1 else t for t in tensors]

    def export(self, tensors: list[Tensor]) -> list[Tensor]:
        """See `Operation`."""
        return [t.mT if t.ndim > 1 else t for t in tensors]


@dataclass(frozen=True)
class Split:
    """One fused tensor of theirs is several of ours, laid end to end along a dimension.

    With `groups` the fusion is repeated: so many times the share of each (GPT-NeoX: query, key and value per head).
    """

    dim: int = 0
    groups: int = 1

    def load(self, tensors: list[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Operation`."""
        (fused,) = tensors
        sizes = [shape[self.dim] // self.groups for shape in shapes]
        parts = torch.split(self._grouped(fused), sizes, self.dim + 1)
        return [part.flatten(self.dim, self.dim + 1) for part in parts]

    def export(self, tensors: list[Tensor]) -> list[Tensor]:
        """See `Operation`."""
        return [torch.cat([self._grouped(t) for t in tensors], self.dim + 1).flatten(self.dim, self.dim + 1)]

    def _grouped(self, t: Tensor) -> Tensor:
        return t.reshape(*t.shape[: self.dim], self.groups, -1, *t.shape[self.dim + 1 :])


@dataclass(frozen=True)
class Stack:
    """Many tensors of theirs are one of ours, along a new first dimension: the experts of a layer.

    With `parts` they are so many of ours, and theirs alternate: part 0 and 1 of expert 0, part 0 and 1 of expert 1.
    """

    parts: int = 1

    def load(self, tensors: list[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Operation`."""
        return [torch.stack(tensors[part :: self.parts]) for part in range(self.parts)]

    def export(self, tensors: list[Tensor]) -> list[Tensor]:
        """See `Operation`."""
        return [t for row in zip(*tensors, strict=True) for t in row]


@dataclass(frozen=True)
class Reshape:
    """The same numbers in another shape; one size of each shape may be -1."""

    theirs: Shape
    ours: Shape

    def load(self, tensors: list[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Operation`."""
        return [t.reshape(self.ours) for t in tensors]

    def export(self, tensors: list[Tensor]) -> list[Tensor]:
        """See `Operation`."""
        return [t.reshape(self.theirs) for t in tensors]


@dataclass(frozen=True)
class Zeros:
    """Tensors of ours that are zero where a file has none; for a rule in `also` without tensors of theirs."""

    def load(self, tensors: list[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Operation`."""
        return [torch.zeros(shape) for shape in shapes]

    def export(self, tensors: list[Tensor]) -> list[Tensor]:
        """See `Operation`."""
        return []


@dataclass(frozen=True)
class PairsToHalves:
    """Rotary pairs lie side by side in their rows of each head, and half a head apart in ours."""

    head_dim: int

    def load(self, tensors: list[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Operation`."""
        return [t.reshape(-1, self.head_dim // 2, 2, *t.shape[1:]).transpose(1, 2).reshape(t.shape) for t in tensors]

    def export(self, tensors: list[Tensor]) -> list[Tensor]:
        """See `Operation`."""
        return [t.reshape(-1, 2, self.head_dim // 2, *t.shape[1:]).transpose(1, 2).reshape(t.shape) for t in tensors]


@dataclass(frozen=True)
class Rule:
    """Some of our tensors and what they are on disk. `{i}` in a name stands for the layer."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    operations: tuple[Operation, ...] = ()
    """From theirs to ours, in order."""
    also: tuple[Rule, ...] = ()
    """The same tensors of ours as other files hold them: read where this rule's are absent, never written."""

    def load(self, tensors: Sequence[Tensor], shapes: Sequence[Shape]) -> dict[str, Tensor]:
        """Our tensors by name, from theirs in the order of `theirs`."""
        current = list(tensors)
        for operation in self.operations:
            current = operation.load(current, shapes)
        return dict(zip(self.ours, current, strict=True))

    def export(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Their tensors by name, from ours in the order of `ours`."""
        current = list(tensors)
        for operation in reversed(self.operations):
            current = operation.export(current)
        return dict(zip(self.theirs, current, strict=True))

    def as_stored(self, names: Collection[str]) -> Rule:
        """This rule, or the one of `also` whose tensors are all in a file."""
        return next((r for r in (self, *self.also) if all(t in names for t in r.theirs)), self)

    def renamed(self, rename: Callable[[str], str]) -> Rule:
        """The rule with every name, ours and theirs, replaced."""
        ours, theirs = (tuple(rename(n) for n in names) for names in (self.ours, self.theirs))
        return replace(self, ours=ours, theirs=theirs, also=tuple(r.renamed(rename) for r in self.also))


def rename(ours: str, theirs: str, *operations: Operation) -> Rule:
    """A rule between one tensor and one tensor."""
    return Rule((ours,), (theirs,), operations)


def with_bias(ours: str, theirs: str, *operations: Operation) -> tuple[Rule, Rule]:
    """Rules for a linear map's `weight` and `bias` under module names."""
    return rename(f"{ours}.weight", f"{theirs}.weight", *operations), rename(
        f"{ours}.bias", f"{theirs}.bias", *(o for o in operations if not isinstance(o, Transpose))
    )


def expand(rules: Iterable[Rule], names: Iterable[str], num_layers: int) -> tuple[Rule, ...]:
    """The rules that concern `names`, with `{i}` filled in; together they cover each name exactly once."""
    rules, wanted = tuple(rules), set(names)
    concrete: list[Rule] = []
    for rule in rules:
        layers = range(num_layers) if "{i}" in rule.ours[0] else range(1)
        filled = (rule.renamed(partial(_in_layer, layer=i)) for i in layers)
        concrete += [r for r in filled if wanted.issuperset(r.ours)]
    covered = Counter(name for rule in concrete for name in rule.ours)
    repeated = _of_any_layer(name for name, times in covered.items() if times > 1)
    assert not repeated, f"two weight rules name {', '.join(repeated)}"
    missing = _of_any_layer(wanted - set(covered))
    if missing:
        unused = {name for rule in rules for name in rule.ours} - set(_of_any_layer(wanted))
        near = [n for name in missing for n in difflib.get_close_matches(name, unused, n=1, cutoff=0.95)]
        hint = f" (misspelled as {', '.join(near)}?)" if near else ""
        raise AssertionError(f"no weight rule names {', '.join(missing)}{hint}")
    return tuple(concrete)


def without_prefix(rules: Iterable[Rule], prefix: str) -> tuple[Rule, ...]:
    """The rules as they read for files written from the bare model, whose names lack `prefix`."""

    def bare(rule: Rule) -> Rule:
        theirs = tuple(t.removeprefix(prefix) for t in rule.theirs)
        return replace(rule, theirs=theirs, also=tuple(bare(r) for r in rule.also))

    return tuple(bare(rule) for rule in rules)


def export_state(rules: Iterable[Rule], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of their tensors from all of ours. On meta tensors it yields the shapes to expect."""
    exported: dict[str, Tensor] = {}
    for rule in rules:
        tensors = rule.export([state[name] for name in rule.ours])
        assert exported.keys().isdisjoint(tensors), f"two weight rules write {', '.join(exported.keys() & tensors)}"
        exported |= tensors
    return exported


def _of_any_layer(names: Iterable[str]) -> list[str]:
    """Names as rules write them, each once."""
    return sorted({re.sub(r"(?<=layers\.)\d+", "{i}", name) for name in names})


def _in_layer(name: str, layer: int) -> str:
    return name.replace("{i}", str(layer))
