"""One checkpoint as it is read: whole, by name, or into the tensors of any mesh.

Knows neither how checkpoints are written nor which of them is chosen.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from lmworks.core.errors import CheckpointError, TrainingError
from lmworks.train.nested import leaves
from lmworks.train.save_group import SaveGroup
from lmworks.train.sharded_state import Entry, contents, read_shards

STATE = "state"
"""Folder of the tensors in a checkpoint."""
_UNREADABLE = (
    CheckpointException, OSError, RuntimeError, ValueError, LookupError, EOFError, AttributeError, TypeError,
    ImportError, pickle.UnpicklingError,
)  # fmt: skip
"""What torch raises where the table of contents, a pickle, is of another version or was never one."""
_OTHER_MODEL = "Resume with the model, the vocabulary and the optimizer that the run was started with, or start anew"


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint. In a mesh every rank has the same one."""

    path: Path
    step: int
    """Updates done."""
    identity: dict[str, Any]
    """What the run was: settings, model, data."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """What was measured at that step."""
    group: SaveGroup = field(default_factory=SaveGroup)
    """The ranks that read it together."""

    def load(self, prefix: str = "") -> dict[str, Tensor]:
        """Every tensor whose name begins with `prefix`, whole, in host memory. Asks no other rank.

        Raises:
            CheckpointError: the files cannot be read.
        """
        with self._readable():
            state = {
                name: torch.empty(entry.shape, dtype=entry.dtype)
                for name, entry in contents(self.path / STATE).items()
                if name.startswith(prefix)
            }
            read_shards(self.path / STATE, state)
        return state

    def entries(self) -> dict[str, Entry]:
        """Shape and type of every tensor by its name.

        Raises:
            CheckpointError: the files cannot be read.
        """
        with self._readable():
            return self.group.first(lambda: contents(self.path / STATE))

    def load_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors in place; of a DTensor, on whatever mesh, each rank reads its own part. All ranks call it.

        Args:
            tensors: those of the caller. All ranks together ask for all that the checkpoint holds.

        Raises:
            CheckpointError: on every rank, if a tensor is missing, left over, of another shape, or cannot be read on
                one of them.
        """
        entries = self.entries()
        self.group.each(lambda: self._require_shapes(tensors, entries))
        asked = self.group.gather(lambda: set(tensors))
        self.group.first(lambda: self._require_all_asked(set().union(*asked), entries))

        def read() -> None:
            with self._readable():
                read_shards(self.path / STATE, tensors)

        self.group.each(read)

    def _require_shapes(self, tensors: Mapping[str, Tensor], entries: Mapping[str, Entry]) -> None:
        for name, tensor in tensors.items():
            if name not in entries:
                raise CheckpointError(f"{self.path} does not hold {name!r}, which the run has", _OTHER_MODEL)
            saved = entries[name]
            if (saved.shape, saved.dtype) != (tensor.shape, tensor.dtype):
                raise CheckpointError(
                    f"{name!r} is {saved.dtype} {list(saved.shape)} in {self.path}, and {tensor.dtype} "
                    f"{list(tensor.shape)} in the run",
                    _OTHER_MODEL,
                )

    def _require_all_asked(self, asked: set[str], entries: Mapping[str, Entry]) -> None:
        if left := sorted(set(entries) - asked):
            raise CheckpointError(
                f"{self.path} holds {len(left)} tensors that the run has not, among them {left[0]!r}", _OTHER_MODEL
            )

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except _UNREADABLE as error:
            raise CheckpointError(
                f"{self.path} cannot be read by torch {torch.__version__}: {error}",
                "Remove it to go on from an older one",
            ) from error


def shapes_digest(model: nn.Module) -> str:
    """One hash of all parameter names and shapes."""
    listing = "".join(f"{name} {tuple(p.shape)} {p.requires_grad}\n" for name, p in model.named_parameters())
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


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
