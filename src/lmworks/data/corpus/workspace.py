"""Where the cleaned units of an unfinished run lie, beside the output they are for: of one run at a time.

Knows no unit.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmworks.core.errors import ArtifactError, RunInProgressError, disk_errors
from lmworks.core.lineage import require_replaceable
from lmworks.core.progress import say


@contextmanager
def workspace_of(output: Path, key: str) -> Iterator[Workspace]:
    """Hold the workspace of an output while the block runs; it stays if that does not remove it.

    Args:
        output: of the stage.
        key: of everything that cleaning depends on; what was cleaned otherwise is removed.

    Raises:
        ArtifactError: the output is something else, or cannot be written.
        RunInProgressError: another process is at work for the same output.
        DiskFullError: the device is full.
    """
    require_replaceable(output)
    root = output.parent / f".{output.name}.work"
    with disk_errors(root), _held(root):
        for other in root.iterdir():
            if other != root / key:
                _remove(other)
        (root / key).mkdir(exist_ok=True)
        try:
            yield Workspace(root / key)
        except KeyboardInterrupt:
            say(f"Stopped. What was cleaned for {output} is kept: run the same command again to go on.")
            raise


class Workspace:
    """A folder for cleaned units."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remove(self) -> None:
        """Once it is not needed."""
        _remove(self.folder)
        shutil.rmtree(self.folder.parent, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system frees it when the process ends, however it ends."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
        except (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
            problem = f"{folder.parent} cannot be written to: {error.strerror}"
            raise ArtifactError(problem, "Choose another output path") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
                yield
                return
            # else a run that ended just now removed it
        except BlockingIOError:
            problem = f"another run is at work on what {folder} is for"
            raise RunInProgressError(problem, "Wait for it, stop it, or choose another output path") from None
        finally:
            os.close(handle)


def _remove(folder: Path) -> None:
    """Under another name, so that a run killed meanwhile leaves no half of it to be taken for the whole."""
    gone = folder.with_name(f"{folder.name.removesuffix('.gone')}.gone")
    if folder != gone:
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
