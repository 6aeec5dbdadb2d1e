"""Do all ranks hold the same? Hashes of parameters or gradients, compared over the mesh; the culprit is named.

Knows no model: parameters are told apart by name, their parts by what their DTensor says.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lmworks.core.errors import ParallelError
from lmworks.parallel.mesh import Mesh
from lmworks.parallel.vocabulary import local


def require_equal_replicas(
    model: nn.Module, mesh: Mesh, *, gradients: bool = False, parts: Mapping[str, Hashable] | None = None
) -> str:
    """Check that every part of every parameter is the same bits on all ranks that hold it.

    Args:
        model: every rank calls this with its own.
        mesh: the ranks.
        gradients: compare `.grad`, after the step's last micro-batch, in place of values.
        parts: which part of a parameter the caller holds, for those that are divided without being DTensors.

    Returns:
        One hash of the whole model, equal on all ranks.

    Raises:
        ParallelError: on every rank, naming the parameter and the ranks that disagree with the others.
    """
    own: dict[tuple[Hashable, ...], str] = {}
    for name, parameter in model.named_parameters():
        value = parameter.grad if gradients else parameter
        part = (parts or {}).get(name)
        own[name, mesh.rank("pipeline"), part, *_coordinates(parameter)] = "none" if value is None else _hash(value)
    everywhere: list[dict[tuple[Hashable, ...], str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everywhere, own)
    holders: dict[tuple[Hashable, ...], dict[int, str]] = {}
    for rank, found in enumerate(everywhere):
        for key, hashed in found.items():
            holders.setdefault(key, {})[rank] = hashed
    differing = {key: ranks for key, ranks in holders.items() if len(set(ranks.values())) > 1}
    if differing:
        key, ranks = next(iter(differing.items()))
        common = Counter(ranks.values()).most_common(1)[0][0]
        odd = [rank for rank, value in ranks.items() if value != common]
        raise ParallelError(
            f"{len(differing)} {'gradients' if gradients else 'parameters'} differ between replicas, first {key[0]!r}: "
            f"rank{'s' * (len(odd) > 1)} {', '.join(map(str, odd))} of {sorted(ranks)} disagree with the others",
            "Go on from the last checkpoint, and look at those hosts' hardware and data first",
        )
    total = hashlib.sha256()
    for key in sorted(holders, key=repr):
        total.update(repr((key, next(iter(holders[key].values())))).encode())
    return total.hexdigest()


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


def _hash(value: Tensor) -> str:
    values = local(value.detach()).cpu().contiguous().view(-1)
    return hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
