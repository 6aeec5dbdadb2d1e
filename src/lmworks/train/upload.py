"""Copies of checkpoints in object storage, for machines that are taken away with their disks.

Object stores have no rename, so a checkpoint's manifest is its last file: a folder without one is no checkpoint. Speaks
to any storage that fsspec knows, and knows nothing of what the files mean.
"""

from __future__ import annotations

import os
import posixpath
import shutil
from collections.abc import Set
from importlib import import_module
from pathlib import Path
from typing import Any

from lmworks.core.errors import CheckpointError, require
from lmworks.core.lineage import MANIFEST
from lmworks.core.progress import say


class Mirror:
    """A folder in object storage that holds what a local one does.

    Args:
        url: of the folder, with a protocol, e.g. `s3://bucket/run`.

    Raises:
        MissingExtraError: fsspec is not installed.
        CheckpointError: fsspec cannot open such a URL.
    """

    def __init__(self, url: str) -> None:
        require("fsspec", "cloud")
        fsspec: Any = import_module("fsspec")
        try:
            self._storage, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise CheckpointError(
                f"checkpoints cannot be uploaded to {url}: {error}", "Install the fsspec package of that storage"
            ) from error
        self.url = url

    def push(self, folder: Path, keep: Set[str]) -> None:
        """Copy a published folder and remove those that are not to be kept.

        What cannot be copied is told and not raised: the local folder is whole, and a run does not end for the network.

        Args:
            folder: with its manifest.
            keep: names of folders that stay.
        """
        target = posixpath.join(self._root, folder.name)
        try:
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            for file in sorted(files, key=lambda p: p.name == MANIFEST):
                self._put(file, posixpath.join(target, file.relative_to(folder).as_posix()))
            for name in self._names() - keep - {folder.name}:
                self._remove(posixpath.join(self._root, name))
        except Exception as error:  # noqa: BLE001  # each storage has its own
            say(f"{folder.name} was not uploaded to {self.url}, and is kept here: {error!r}")

    def pull(self, folder: Path, prefix: str) -> None:
        """Copy the newest whole folder whose name begins with `prefix` here, if there is one.

        Raises:
            CheckpointError: it is there and cannot be copied.
        """
        try:
            for name in sorted((n for n in self._names() if n.startswith(prefix)), reverse=True):
                source = posixpath.join(self._root, name)
                if self._storage.exists(posixpath.join(source, MANIFEST)):
                    say(f"fetching {name} from {self.url}")
                    self._get(source, folder / name)
                    return
        except Exception as error:
            raise CheckpointError(
                f"checkpoints cannot be fetched from {self.url}: {error!r}",
                "Mend the connection, or leave `upload` out to start anew",
            ) from error

    def _names(self) -> set[str]:
        """Names of the folders there."""
        if not self._storage.exists(self._root):
            return set()
        found = self._storage.ls(self._root, detail=True)
        return {posixpath.basename(f["name"].rstrip("/")) for f in found if f["type"] == "directory"}

    def _put(self, file: Path, target: str) -> None:
        self._storage.makedirs(posixpath.dirname(target), exist_ok=True)
        self._storage.put_file(str(file), target)

    def _get(self, source: str, folder: Path) -> None:
        """Files first land in a hidden folder: what is published is whole."""
        hidden = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
        shutil.rmtree(hidden, ignore_errors=True)
        for name in self._storage.find(source):
            local = hidden / posixpath.relpath(name, source)
            local.parent.mkdir(parents=True, exist_ok=True)
            self._storage.get_file(name, str(local))
        hidden.rename(folder)

    def _remove(self, target: str) -> None:
        """The manifest first: what is left half removed is no checkpoint."""
        manifest = posixpath.join(target, MANIFEST)
        if self._storage.exists(manifest):
            self._storage.rm_file(manifest)
        self._storage.rm(target, recursive=True)
