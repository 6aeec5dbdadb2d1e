"""Checkpoints that survive being killed at any instant, and the choice of the one to resume from.

Each is an artifact folder `step-00000200` holding torch.distributed.checkpoint files of flat, named
tensors; no object is pickled into it. It is published by one rename once every file is on the device.
Knows no trainer: what is saved is a mapping it is given.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from lmworks.core.errors import ArtifactError, CheckpointError, TrainingError, disk_errors
from lmworks.core.lineage import recover, verify, write_artifact
from lmworks.core.progress import say
from lmworks.train.nested import leaves

PREFIX = "step-"
DAMAGED = ".damaged"


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint."""

    path: Path
    step: int
    """Updates done."""
    identity: dict[str, Any]
    """What the run was: settings, model, data."""

    def load(self) -> dict[str, Tensor]:
        """Every tensor by its name.

        Raises:
            CheckpointError: the files cannot be read.
        """
        try:
            with _single_process():
                reader = FileSystemReader(self.path / "state")
                found = reader.read_metadata().state_dict_metadata
                state: dict[str, Any] = {
                    name: torch.empty(entry.size, dtype=entry.properties.dtype)
                    for name, entry in found.items()
                    if isinstance(entry, TensorStorageMetadata)
                }
                load(state, storage_reader=reader, no_dist=True)
        except (CheckpointException, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} cannot be read: {error}", "Remove it to go on from an older one"
            ) from error
        return state


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: holds them; created when the first is written.
        keep_last: how many to keep.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder, self.keep_last = folder, keep_last

    def save(self, step: int, state: Mapping[str, Tensor], identity: Mapping[str, Any], code_version: str) -> Path:
        """Publish a checkpoint and remove those beyond `keep_last`.

        Raises:
            DiskFullError: the device is full; older checkpoints are intact.
        """
        path = self._path(step)
        with write_artifact(path, "checkpoint", config=identity, code_version=code_version) as writer:
            writer.metrics["step"] = step
            with disk_errors(path), _os_errors(), _single_process():
                # The artifact writer flushes every file to the device itself.
                storage = FileSystemWriter(writer.folder / "state", sync_files=False)
                save(dict(state), storage_writer=storage, no_dist=True)
        for old in self._steps()[self.keep_last :]:
            shutil.rmtree(self._path(old), ignore_errors=True)
        return path

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose files are as they were written, or None.

        A damaged one is renamed to `….damaged`, with a message, and the next older one is tried.
        """
        self._recover()
        for step in self._steps():
            path = self._path(step)
            try:
                manifest = verify(path)
            except ArtifactError as error:
                aside = path.with_name(path.name + DAMAGED)
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                say(f"skipping a damaged checkpoint, kept as {aside.name}: {error.problem}")
                continue
            return Checkpoint(path, step, manifest.config)
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step:08d}"

    def _steps(self) -> list[int]:
        """Steps of the published checkpoints, newest first."""
        names = (p.name.removeprefix(PREFIX) for p in self.folder.glob(f"{PREFIX}*"))
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _recover(self) -> None:
        """Finish or drop what a killed run left half published."""
        for hidden in list(self.folder.glob(f".{PREFIX}*")):
            recover(self.folder / hidden.name[1:].partition(".")[0])


def require_same_run(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other settings, another model or other data.

    Raises:
        TrainingError: naming each setting that differs, with both values.
    """
    before, now = leaves(checkpoint.identity, "."), leaves(identity, ".")
    changed = [
        f"{key} was {before.get(key, 'absent')} and is now {now.get(key, 'absent')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise TrainingError(
            f"{checkpoint.path} belongs to another run: " + "; ".join(changed),
            f"Restore these settings, or remove {checkpoint.path.parent} to start anew",
        )


@contextmanager
def _single_process() -> Iterator[None]:
    """torch.distributed.checkpoint warns when used without a process group, as is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextmanager
def _os_errors() -> Iterator[None]:
    """Unwrap the operating system's error from the exception that gathers those of all ranks."""
    try:
        yield
    except CheckpointException as error:
        for failure in error.failures.values():
            if isinstance(failure[0], OSError):
                raise failure[0] from error
        raise
