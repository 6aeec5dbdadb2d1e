"""A log file for each rank, and a console that is rank 0's: others are heard there once when they warn.

Knows no trainer and reads no log back.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import IO, Any, cast

import torch.distributed as dist

from lmworks.core.errors import disk_errors
from lmworks.core.progress import console

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def rank_log(folder: Path) -> Iterator[Path]:
    """While the block runs, keep what this rank says in `rank-00003.log`, and only rank 0's on the console too.

    Messages for the person at the terminal (`say`, progress bars), log records from INFO on and Python warnings go to
    the file; of ranks other than 0 standard output too. Their records from WARNING on are also shown on the console,
    the same message once however many ranks give it and however often. An error that ends the block is logged with its
    traceback; showing it is left to whoever catches it.

    Args:
        folder: shared by all ranks; created. Files of an earlier start are appended to.

    Yields:
        The rank's file.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    path = folder / f"rank-{rank:05d}.log"
    shown = folder / f".shown-{_token()}"
    with disk_errors(path):
        shown.mkdir(parents=True, exist_ok=True)
    root, terminal, before = logging.getLogger(), console.file, logging.getLogger().level
    own = cast("IO[str]", None if terminal is sys.stderr else terminal)  # None follows standard error
    with _log_file(path) as file:
        handlers: list[logging.Handler] = [logging.StreamHandler(file), _Console(rank, shown, terminal)]
        handlers[0].setFormatter(logging.Formatter(_FORMAT))
        for handler in handlers:
            root.addHandler(handler)
        root.setLevel(min(before, logging.INFO))
        logging.captureWarnings(True)
        console.file = cast("IO[str]", _Both(terminal, file)) if rank == 0 else file
        try:
            with redirect_stdout(sys.stdout if rank == 0 else file):
                yield path
        except BaseException:
            logging.getLogger(__name__).info("rank %d ends", rank, exc_info=True)
            raise
        finally:
            console.file = own
            logging.captureWarnings(False)
            root.setLevel(before)
            for handler in handlers:
                root.removeHandler(handler)
            if rank == 0:
                shutil.rmtree(shown, ignore_errors=True)


class _Console(logging.Handler):
    """Shows warnings and errors; the first rank to leave a mark for a message shows it."""

    def __init__(self, rank: int, shown: Path, terminal: IO[str]) -> None:
        super().__init__(logging.WARNING)
        self._rank, self._shown, self._terminal = rank, shown, terminal

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.name == "py.warnings":  # the line of code below it is for the file
            message = message.partition("\n")[0]
        # Numbers differ from rank to rank (ports, pids, seconds) where the message is the same.
        same = hashlib.blake2b(re.sub(r"\d+", "#", message).encode(), digest_size=12).hexdigest()
        try:
            (self._shown / same).touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:  # rank 0 has ended and tidied up, or the disk is full: better twice than not at all
            pass
        with suppress(ValueError):  # the terminal was closed
            self._terminal.write(f"rank {self._rank}: {record.levelname.lower()}: {message}\n")
            self._terminal.flush()


@contextmanager
def _log_file(path: Path) -> Iterator[IO[str]]:
    """A file to append to, line by line."""
    with disk_errors(path):
        file = path.open("a", encoding="utf-8", buffering=1)
    try:
        yield cast("IO[str]", _Tolerant(file))
    finally:
        with suppress(OSError):
            file.close()


class _Tolerant:
    """A file in which nothing is written while it cannot be: a full disk must not end a run that would go on."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Both:
    """What is written goes to the terminal, which says of itself what it is, and to a file."""

    def __init__(self, terminal: IO[str], file: IO[str]) -> None:
        self._terminal, self._file = terminal, file

    def write(self, text: str) -> int:
        if not text.startswith("\x1b"):  # a progress bar that moves its own cursor
            self._file.write(text)
        return self._terminal.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._terminal, name)


def _token() -> str:
    """One word for this start of the run, the same on all ranks."""
    word = [secrets.token_hex(4)]
    if dist.is_initialized():
        dist.broadcast_object_list(word)
    return word[0]
