"""What a synthesis has done so far, one line a round, so that a killed run goes on where it was. Knows no method.

A round is written and flushed as a whole; the half line of a killed run is cut off and its round made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmworks.core.errors import DataError, disk_errors


class Journal:
    """The rounds of one synthesis.

    Args:
        file: beside the artifact that is to be made.
        identity: everything that decides the result; a journal of another is refused.

    Raises:
        DataError: the file is the journal of other settings, or no journal.
    """

    def __init__(self, file: Path, identity: Mapping[str, Any]) -> None:
        self._file = file
        self.rounds: list[list[dict[str, Any]]] = []
        """Attempts of each finished round."""
        begun = json.loads(json.dumps(identity))
        file.parent.mkdir(parents=True, exist_ok=True)
        whole, newline, _ = file.read_bytes().rpartition(b"\n") if file.exists() else (b"", b"", b"")
        if not newline:
            file.write_bytes(b"")
            self._append(begun)
            return
        try:
            before, *rounds = [json.loads(line) for line in whole.split(b"\n")]
        except ValueError:
            raise DataError(f"{file} is not a journal of a synthesis", "Remove it to begin anew") from None
        if before != begun:
            changed = sorted(key for key in {*before, *begun} if before.get(key) != begun.get(key))
            raise DataError(
                f"{file} is of a run with other settings ({', '.join(changed)})",
                "Go on with the same settings, choose another output, or remove the journal to begin anew",
            )
        self.rounds = rounds
        os.truncate(file, len(whole) + 1)

    def finish_round(self, attempts: list[dict[str, Any]]) -> None:
        """Keep a round for good."""
        self._append(attempts)
        self.rounds.append(attempts)

    def remove(self) -> None:
        """Once the artifact is there."""
        self._file.unlink()

    def _append(self, value: object) -> None:
        with disk_errors(self._file), self._file.open("ab") as stream:
            stream.write(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
