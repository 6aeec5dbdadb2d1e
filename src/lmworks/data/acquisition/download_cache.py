"""The folder of downloaded packages: whole files alone, written by one process at a time. Knows no index."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmworks.core.errors import DownloadError, disk_errors
from lmworks.core.progress import say


def cache_folder() -> Path:
    """`$LMWORKS_CACHE`, else `lmworks` in the user's cache folder."""
    if chosen := os.environ.get("LMWORKS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmworks"


@contextmanager
def sole_writer(target: Path) -> Iterator[Path]:
    """The file to write first and to rename to `target` when it is whole; others who want to write it wait.

    What a killed process left in it is still there, and what is left in it here is removed. Whoever waited should look
    whether `target` is there by now.

    Raises:
        DownloadError: the cache cannot be written.
        DiskFullError: its device is full.
    """
    partial = target.with_name(f".{target.name}.partial")
    descriptor = _locked(partial)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)  # before the lock goes, so that nobody locks a file that is about to vanish
        os.close(descriptor)


def _locked(partial: Path) -> int:
    """Open a file and lock it; one that its last owner renamed or removed meanwhile is opened anew."""
    while True:
        try:
            with disk_errors(partial):
                partial.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DownloadError(
                f"the cache folder {partial.parent} cannot be written: {error.strerror}",
                "Set LMWORKS_CACHE to a folder you can write",
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another process writes {partial.name[1:].removesuffix('.partial')}; waiting for it.")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(descriptor), partial.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
