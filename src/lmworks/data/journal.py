"""What has been done so far, one line an entry, each durable once it is written. Knows not what the entries say.

Lines are appended and synced; the half line that a kill leaves is cut off when the file is opened again. The first
line says what the journal is of.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lmworks.core.errors import DataError, disk_errors


class Journal:
    """The entries of one piece of work; one process at a time holds it.

    Args:
        file: made with its folder where it is not there.
        identity: everything that decides the work; the journal of another is refused.

    Raises:
        DataError: the file is the journal of other work, no journal, or held by another process.
    """

    def __init__(self, file: Path, identity: Mapping[str, Any]) -> None:
        self._file = file
        self.entries: list[Any] = []
        """In the order in which they were written."""
        begun = json.loads(json.dumps(identity))
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = file.open("a+b")
        try:
            self._open(begun)
        except BaseException:
            self._stream.close()
            raise

    def _open(self, begun: dict[str, Any]) -> None:
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{self._file} is held by another process", "Let it end, or stop it") from None
        self._stream.seek(0)
        whole, newline, _ = self._stream.read().rpartition(b"\n")
        if not newline:
            self._stream.truncate(0)
            self._write(begun)
            return
        try:
            before, *entries = [json.loads(line) for line in whole.split(b"\n")]
        except ValueError:
            raise DataError(f"{self._file} is not a journal", "Remove it to begin anew") from None
        if before != begun:
            names = {*before, *begun} if isinstance(before, dict) else {*begun}
            changed = sorted(key for key in names if not isinstance(before, dict) or before.get(key) != begun.get(key))
            raise DataError(
                f"{self._file} is of a run with other settings ({', '.join(changed)})",
                "Go on with the same settings, choose another output, or remove the journal to begin anew",
            )
        self.entries = entries
        self._stream.truncate(len(whole) + 1)

    def append(self, entry: Any) -> None:
        """Keep an entry for good."""
        self._write(entry)
        self.entries.append(entry)

    def remove(self) -> None:
        """Once what was made of it is there."""
        self._file.unlink()
        self.close()

    def close(self) -> None:
        """Let another process have it."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _write(self, value: object) -> None:
        with disk_errors(self._file):
            self._stream.write(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
