"""Named tensors to the files of torch.distributed.checkpoint and back, from any mesh to any other.

A tensor may be a DTensor, of which every rank writes and reads its own part; what several ranks hold alike is written
once. Plans and files are those of DCP, so its tools read them. Knows no trainer and publishes nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.state_dict_loader import load

from lmworks.core.lineage import sha256, sync_file
from lmworks.train.save_group import SaveGroup

METADATA = ".metadata"
"""DCP's table of contents."""


@dataclass(frozen=True)
class Entry:
    """What is known of a tensor without reading it."""

    shape: torch.Size
    """Of the whole."""
    dtype: torch.dtype


class _StagedPlanner(DefaultSavePlanner):
    """Plans by the live tensors, of which it needs shapes and placements alone, and writes copies of their values."""

    def __init__(self, staged: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._staged = staged

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self._staged[index.fqn] if index.fqn in self._staged else super().lookup_object(index)


def write_shards(folder: Path, state: Mapping[str, Tensor], staged: Mapping[str, Tensor], group: SaveGroup) -> None:
    """Write the tensors of all ranks; each writes its own files.

    Args:
        folder: seen by all ranks.
        state: names are those of one process; DTensors know which part the caller has.
        staged: by name, copies of the caller's parts that are written in their place.
        group: all ranks.

    Raises:
        OSError: on every rank, if one cannot write.
    """
    planner, storage = _StagedPlanner(staged), FileSystemWriter(folder, single_file_per_rank=True, sync_files=False)
    metadata: list[Metadata] = []

    def local_plan() -> SavePlan:
        planner.set_up_planner(dict(state), storage.storage_meta(), group.is_first)
        storage.set_up_storage_writer(group.is_first)
        return storage.prepare_local_plan(planner.create_local_plan())

    local = group.gather(local_plan)

    def global_plans() -> list[SavePlan]:
        plans, contents = planner.create_global_plan(local)
        metadata.append(contents)
        return storage.prepare_global_plan(plans)

    plan = group.deal(global_plans)
    written = group.gather(lambda: storage.write_data(planner.finish_plan(plan), planner).value())
    group.first(lambda: storage.finish(metadata[0], written))


def hash_own(folder: Path, group: SaveGroup) -> dict[str, str]:
    """Flush the files that the ranks wrote to the device and hash them, each its own.

    Returns:
        On the first rank, sha256 of every file of `folder` by its name; nothing on the others.
    """

    def own() -> dict[str, str]:
        files = [*folder.glob(f"__{group.rank}_*"), *([folder / METADATA] if group.is_first else [])]
        for file in files:
            sync_file(file)
        return {file.name: sha256(file) for file in files}

    return {name: value for found in group.gather(own) for name, value in found.items()}


def contents(folder: Path) -> dict[str, Entry]:
    """What `write_shards` left in a folder, by name."""
    found = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {
        name: Entry(entry.size, entry.properties.dtype)
        for name, entry in found.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def read_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill the given tensors in place; of a DTensor the caller's part alone is read. Asks no other rank."""
    with _alone():
        load(dict(tensors), storage_reader=FileSystemReader(folder), no_dist=True)


@contextmanager
def _alone() -> Iterator[None]:
    """DCP warns when told to ask no other rank, as is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
