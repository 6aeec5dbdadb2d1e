"""Do all ranks hold the same? Hashes of parameters or gradients, compared over the mesh; the culprit is named.

Knows no model: parameters are told apart by name, their parts by what their DTensor says.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lmworks.core.errors import ParallelError
from lmworks.parallel.mesh import Mesh
from lmworks.parallel.vocabulary import local

Part = tuple[Hashable, ...]
"""Which part of the weights: stage, and place in the dimensions that divide it."""
K = TypeVar("K")
V = TypeVar("V")
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CPU_CHUNK, DEVICE_CHUNK = 1 << 15, 1 << 24
"""Elements at a time: as many as a cache holds; enough to fill a device."""


class ReplicaCheck:
    """Checks every so many steps that replicas are still replicas.

    Args:
        model: every rank has its own.
        mesh: the ranks.
        every: steps between checks.
        parts: see `require_equal_replicas`.
    """

    def __init__(self, model: nn.Module, mesh: Mesh, every: int, parts: Mapping[str, Hashable] | None = None) -> None:
        self._model, self._mesh, self._every, self._parts = model, mesh, every, parts

    def check(self, step: int, *, gradients: bool = False) -> str | None:
        """Compare parameters, or gradients, if it is time; all ranks call this with the same step.

        Returns:
            One hash of the whole model, equal on all ranks; None where it is not time.

        Raises:
            ParallelError: on every rank, naming the first parameter and the ranks that differ.
        """
        if step % self._every:
            return None
        try:
            return require_equal_replicas(self._model, self._mesh, gradients=gradients, parts=self._parts)
        except ParallelError as error:
            raise ParallelError(f"at step {step} {error.problem}", error.remedy) from None


def require_equal_replicas(
    model: nn.Module, mesh: Mesh, *, gradients: bool = False, parts: Mapping[str, Hashable] | None = None
) -> str:
    """Check that every part of every parameter is the same bits on all ranks that hold it.

    Two integers of each tensor travel to the host, and one hash for each kind of part that a rank holds travels
    between ranks; only where those differ are parameters compared one by one.

    Args:
        model: every rank calls this with its own.
        mesh: the ranks.
        gradients: compare `.grad`, after the step's last micro-batch, in place of values.
        parts: which part of a parameter the caller holds, for those that are divided without being DTensors.

    Returns:
        One hash of the whole model, equal on all ranks.

    Raises:
        ParallelError: on every rank, naming the first parameter and the ranks that disagree with the others.
    """
    found: dict[Part, dict[str, Tensor | None]] = {}
    for name, parameter in model.named_parameters():
        value = parameter.grad if gradients else parameter
        part = (mesh.rank("pipeline"), (parts or {}).get(name), *_coordinates(parameter))
        found.setdefault(part, {})[name] = None if value is None else fingerprint(local(value.detach()))
    own = {part: dict(zip(of, _on_host(list(of.values())), strict=True)) for part, of in found.items()}
    everywhere = _everywhere({part: _digest(of) for part, of in own.items()})
    if any(len(set(ranks.values())) > 1 for ranks in _holders(everywhere).values()):
        _name_culprits(
            [{(name, part): v for part, of in by.items() for name, v in of.items()} for by in _everywhere(own)],
            "gradients" if gradients else "parameters",
        )
    return _digest({repr(part): digest for by in everywhere for part, digest in by.items()})


def fingerprint(tensor: Tensor) -> Tensor:
    """Two int64 sums over the bits of a tensor, on its device: plain, and each element times an odd number of its own.

    Integers modulo 2^64 add up in any order to the same. Any single element that changes changes the result, as odd
    factors can be inverted, and so do any two of at most 32 bits that change places.
    """
    size = tensor.element_size()
    bits = tensor.contiguous().view(-1).view(_INTEGERS[size])
    sums = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    chunk = CPU_CHUNK if tensor.device.type == "cpu" else DEVICE_CHUNK
    odd = 2 * torch.arange(min(chunk, len(bits)), device=tensor.device) + 1
    for start in range(0, len(bits), chunk):
        values = bits[start : start + chunk].long()
        total = values.sum()
        sums[0] += total
        sums[1] += values.mul_(odd[: len(values)]).sum() + 2 * start * total
    return sums


def gradient_norm(model: nn.Module, mesh: Mesh, parts: Mapping[str, int] | None = None) -> float:
    """Euclidean norm of the whole model's gradient, each number counted once however many ranks hold it.

    Args:
        model: after the step's last micro-batch; every rank calls this.
        mesh: the ranks.
        parts: into how many a parameter is divided, for those that are divided without being DTensors.
    """
    holders = dist.get_world_size() // mesh.config.pipeline
    total = torch.zeros((), dtype=torch.float64, device=mesh.device)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            pieces = (parts or {}).get(name, 1)
            if isinstance(parameter, DTensor):
                for size, placement in zip(parameter.device_mesh.shape, parameter.placements, strict=True):
                    pieces *= 1 if placement.is_replicate() else size
            square = torch.linalg.vector_norm(local(parameter.grad), dtype=torch.float64).square()
            total += square.to(total.device) * (pieces / holders)
    dist.all_reduce(total)
    return float(total.sqrt())


def _coordinates(parameter: Tensor) -> tuple[tuple[str, int], ...]:
    """Which part of a DTensor the caller holds: its place in the dimensions that divide it."""
    if not isinstance(parameter, DTensor):
        return ()
    mesh = parameter.device_mesh
    names, places = mesh.mesh_dim_names, mesh.get_coordinate()
    assert names is not None, "meshes here have named dimensions"
    assert places is not None, "a rank that holds a part is on its mesh"
    return tuple(
        (name, place)
        for name, place, placement in zip(names, places, parameter.placements, strict=True)
        if not placement.is_replicate()
    )


def _on_host(found: list[Tensor | None]) -> list[tuple[int, ...] | None]:
    """The fingerprints as numbers; one copy from each device."""
    there = [tensor for tensor in found if tensor is not None]
    numbers = iter(torch.stack(there).tolist() if there else [])
    return [None if tensor is None else tuple(next(numbers)) for tensor in found]


def _digest(values: Mapping[str, object]) -> str:
    return hashlib.blake2b(repr(sorted(values.items())).encode(), digest_size=16).hexdigest()


def _everywhere(own: dict[Part, V]) -> list[dict[Part, V]]:
    found: list[dict[Part, V]] = [{}] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def _holders(everywhere: Iterable[Mapping[K, V]]) -> dict[K, dict[int, V]]:
    """What each rank found, by what it is of."""
    holders: dict[K, dict[int, V]] = {}
    for rank, found in enumerate(everywhere):
        for key, value in found.items():
            holders.setdefault(key, {})[rank] = value
    return holders


def _name_culprits(everywhere: list[dict[tuple[str, Part], tuple[int, ...] | None]], what: str) -> NoReturn:
    differing = {key: ranks for key, ranks in _holders(everywhere).items() if len(set(ranks.values())) > 1}
    (name, _), ranks = next(iter(differing.items()))
    common = Counter(ranks.values()).most_common(1)[0][0]
    odd = [rank for rank, value in ranks.items() if value != common]
    raise ParallelError(
        f"{len(differing)} {what} differ between replicas, first {name!r}: "
        f"rank{'s' * (len(odd) > 1)} {', '.join(map(str, odd))} of {sorted(ranks)} disagree with the others",
        "Go on from the last checkpoint, and look at those hosts' hardware and data first",
    )
