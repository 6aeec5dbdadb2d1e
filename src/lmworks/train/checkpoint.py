"""Checkpoints that survive being killed at any instant, and the choice of the one to resume from.

Each is an artifact folder `step-00000200` holding torch.distributed.checkpoint files of flat, named tensors; no object
is pickled into them. All ranks of a mesh write their parts, and the first publishes all by one rename once every file
is on the device. Knows no trainer: what is saved is a mapping it is given.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from lmworks.core.errors import ArtifactError, ArtifactVersionError, CheckpointError, disk_errors
from lmworks.core.lineage import ArtifactWriter, load_manifest, recover, sha256, write_artifact
from lmworks.core.progress import say
from lmworks.train.async_save import Background, Staging
from lmworks.train.checkpoint_config import KeepBest
from lmworks.train.save_group import SaveGroup
from lmworks.train.saved_checkpoint import STATE, Checkpoint
from lmworks.train.sharded_state import hash_own, write_shards
from lmworks.train.upload import Mirror

PREFIX = "step-"
DAMAGED = ".damaged"
FORMAT = 1
"""Of the names of the tensors; another number is not read."""


class Checkpoints:
    """The checkpoints of one run. In a mesh every rank has one, and all call the same methods in the same order.

    Args:
        folder: holds them, seen by all ranks; created when the first is written.
        keep_last: how many to keep.
        keep_best: those that are kept besides.
        upload: a URL where copies are kept; see `upload.py`.

    Raises:
        MissingExtraError: what the URL needs is not installed.
    """

    def __init__(
        self, folder: Path, keep_last: int, *, keep_best: KeepBest | None = None, upload: str | None = None
    ) -> None:
        self.folder, self.keep_last, self.keep_best = folder, keep_last, keep_best
        self._mirror = None if upload is None else Mirror(upload)
        self._group = SaveGroup()
        self._staging, self._background = Staging(), Background()

    def save(
        self,
        step: int,
        state: Mapping[str, Tensor],
        identity: Mapping[str, Any],
        code_version: str,
        *,
        metrics: Mapping[str, Any] | None = None,
        asynchronous: bool = False,
    ) -> Path:
        """Publish a checkpoint and remove those that are neither among the last nor among the best.

        A save under way is waited for first.

        Args:
            step: updates done.
            state: names are those of one process; each rank gives its own part of DTensors.
            identity: what the run is, JSON-able.
            code_version: of the program.
            metrics: what was measured at this step; its finite numbers are recorded.
            asynchronous: copy the tensors and return; what follows happens in the background, and its error is raised
                by the next `save` or `wait`.

        Raises:
            DiskFullError: the device is full, here or on another rank; older checkpoints are intact.
            CheckpointError: it cannot be written for another reason; older checkpoints are intact.
        """
        self.wait()
        path, figures = self._path(step), {"step": step, **_numbers(metrics or {})}
        live = dict(state)
        if not asynchronous:
            self._write(path, live, {}, identity, figures, code_version)
            return path
        staged, known = self._staging.copy(live), dict(identity)
        self._background.start(lambda: self._write(path, live, staged, known, figures, code_version))
        return path

    def save_within(
        self,
        seconds: float,
        step: int,
        state: Mapping[str, Tensor],
        identity: Mapping[str, Any],
        code_version: str,
        *,
        metrics: Mapping[str, Any] | None = None,
    ) -> Path | None:
        """As `save`, for a program that is about to be ended: None, and a message, if it takes longer than `seconds`.

        That includes the save under way. What is not published by then never is; the last published one is intact.
        """
        ends = time.monotonic() + seconds
        if self.wait(seconds):
            path = self.save(step, state, identity, code_version, metrics=metrics, asynchronous=True)
            if self.wait(max(0.0, ends - time.monotonic())):
                return path
        if self._group.is_first:
            steps = self._steps()
            say(
                f"no checkpoint of step {step}: writing took longer than the {seconds:g} s that a stop may take; "
                + (f"{self._path(steps[0])} is the last" if steps else "there is none before it")
            )
        return None

    @property
    def failed(self) -> bool:
        """Whether a save in the background ended in an error, which `wait` raises.

        Ranks learn of it one by one: a mesh agrees on this flag before all of them call `wait`.
        """
        return self._background.failed

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the save under way.

        Args:
            timeout: seconds to wait at most.

        Returns:
            False if the time was up before it was published.

        Raises:
            DiskFullError: as of `save`.
            CheckpointError: as of `save`.
        """
        return self._background.wait(timeout)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose files are as they were written, or None.

        A damaged one is renamed to `….damaged`, with a message, and the next older one is tried. Where the folder has
        none, the newest of the upload is fetched.

        Raises:
            CheckpointError: the newest is of another version of this program.
        """
        self.wait()
        self._group.first(self._recover)
        for step in self._group.first(self._steps):
            if (found := self._intact(step)) is not None:
                return found
        return None

    def best(self) -> Checkpoint | None:
        """The intact checkpoint with the best value of the metric of `keep_best`, or None."""
        self.wait()
        for step in self._group.first(self._ranking):
            if (found := self._intact(step)) is not None:
                return found
        return None

    def _write(
        self, path: Path, live: Mapping[str, Tensor], staged: Mapping[str, Tensor], identity: Mapping[str, Any],
        metrics: Mapping[str, Any], code_version: str,
    ) -> None:  # fmt: skip
        """Write and publish; the same on all ranks, or an error on all."""
        group = self._group
        with _writing(path), ExitStack() as stack:
            writers: list[ArtifactWriter] = []

            def begin() -> Path:
                artifact = write_artifact(path, "checkpoint", config=identity, code_version=code_version)
                writers.append(stack.enter_context(artifact))
                return writers[0].folder / STATE

            folder = group.first(begin)
            write_shards(folder, live, staged, group)
            hashes = hash_own(folder, group)
            for writer in writers:  # on the first rank
                writer.hashes.update({f"{STATE}/{name}": value for name, value in hashes.items()})
                writer.metrics.update(metrics)
                writer.notes.update(checkpoint_format=FORMAT, torch=torch.__version__, ranks=group.size)
            group.first(stack.close)
        group.first(lambda: self._published(path))

    def _published(self, path: Path) -> None:
        kept = {self._path(step) for step in self._kept()}
        for step in self._steps():
            if (old := self._path(step)) not in kept:
                _remove(old)
        if self._mirror is not None:
            self._mirror.push(path, keep={p.name for p in kept})

    def _kept(self) -> set[int]:
        count = 0 if self.keep_best is None else self.keep_best.count
        return {*self._steps()[: self.keep_last], *self._ranking()[:count]}

    def _ranking(self) -> list[int]:
        """Steps whose checkpoints have the metric of `keep_best`, best first; of equals the older one."""
        best, values = self.keep_best, dict[int, float]()
        for step in self._steps() if best is not None else []:
            try:
                value = load_manifest(self._path(step)).metrics.get(best.metric) if best is not None else None
            except ArtifactError:
                continue  # `newest` tells of it
            if value is not None:
                values[step] = value if best is not None and best.mode == "min" else -value
        return sorted(values, key=lambda step: (values[step], step))

    def _intact(self, step: int) -> Checkpoint | None:
        """A checkpoint whose files, hashed by all ranks in shares, are as its manifest says; else it is set aside."""
        path, group = self._path(step), self._group
        try:
            manifest = group.first(lambda: load_manifest(path))
            if (found := manifest.notes.get("checkpoint_format", FORMAT)) != FORMAT:
                raise ArtifactVersionError(
                    f"{path} has checkpoint format {found} (torch {manifest.notes.get('torch')}), this program reads "
                    f"{FORMAT}",
                )
            share = sorted(manifest.files)[group.rank :: group.size]
            wrong = group.gather(lambda: [name for name in share if not _is(path / name, manifest.files[name])])
            group.first(lambda: _require_none(path, [name for names in wrong for name in names]))
        except ArtifactVersionError as error:
            raise CheckpointError(
                error.problem, f"Go on with the version that wrote it, or remove {self.folder} to start anew"
            ) from error
        except ArtifactError as error:
            problem = error.problem
            group.first(lambda: _set_aside(path, problem))
            return None
        return Checkpoint(path, step, manifest.config, manifest.metrics, group)

    def _path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step:08d}"

    def _steps(self) -> list[int]:
        """Steps of the published checkpoints, newest first."""
        names = (p.name.removeprefix(PREFIX) for p in self.folder.glob(f"{PREFIX}*"))
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _recover(self) -> None:
        """Finish or drop what a killed run left half published; fetch what only the upload has."""
        for hidden in list(self.folder.glob(f".{PREFIX}*")):
            recover(self.folder / hidden.name[1:].partition(".")[0])
        if self._mirror is not None and not self._steps():
            self._mirror.pull(self.folder, PREFIX)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Name what was to be written in every error."""
    try:
        with disk_errors(path):
            yield
    except (CheckpointException, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"writing {path} failed: {error}",
            "Older checkpoints are intact; look at this folder and at the other ranks",
        ) from error


def _remove(path: Path) -> None:
    """Remove a published folder; killed meanwhile, it leaves none that is half there."""
    hidden = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _is(file: Path, digest: str) -> bool:
    return file.is_file() and sha256(file) == digest


def _require_none(path: Path, wrong: list[str]) -> None:
    if wrong:
        missing = [name for name in wrong if not (path / name).exists()]
        changed = sorted(set(wrong) - set(missing))
        raise ArtifactError(f"{path} does not match its manifest: missing {missing}, changed {changed}")


def _set_aside(path: Path, problem: str) -> None:
    aside = path.with_name(path.name + DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    say(f"skipping a damaged checkpoint, kept as {aside.name}: {problem}")


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
