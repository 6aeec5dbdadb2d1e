"""Which model gave which answer: one JSON line per response id, so that an answer can be traced later.

Holds counts and hashes, never prompt or answer text. Knows no HTTP.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from lmworks.core.errors import ServerError

logger = logging.getLogger(__name__)

REMEMBERED = 10_000
"""Latest entries kept in memory, for servers without a file and for fast look-ups."""


@dataclass(frozen=True)
class JournalEntry:
    """One answered (or aborted) request."""

    id: str
    created: int
    """Unix time, seconds."""
    model: str
    path: str | None
    """The model's artifact."""
    content_hash: str
    """Of the artifact when it was loaded."""
    prompt_tokens: int
    completion_tokens: int
    finish_reasons: list[str]
    duration_seconds: float


class Journal:
    """Appends entries to a JSONL file (or keeps them in memory only) and finds them again.

    Args:
        file: where to append; None keeps the latest `REMEMBERED` entries in memory alone.

    Raises:
        ServerError: the file cannot be opened for appending.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._recent: OrderedDict[str, JournalEntry] = OrderedDict()
        self._lock = threading.Lock()
        self._handle: TextIO | None = None
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                _end_last_line(file)
                self._handle = file.open("a", encoding="utf-8")
            except OSError as error:
                raise ServerError(
                    f"the journal {file} cannot be written: {error.strerror}", "Choose another journal path"
                ) from None

    def append(self, entry: JournalEntry) -> None:
        """Remember one response. A full disk is logged and costs the record, never the answer."""
        with self._lock:
            self._recent[entry.id] = entry
            if len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)
            if self._handle is not None:
                try:
                    self._handle.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
                    self._handle.flush()
                except OSError as error:
                    logger.error("journal %s: response %s was not recorded: %s", self._file, entry.id, error)

    def find(self, response_id: str) -> JournalEntry | None:
        """The entry of a response, from memory or from the file."""
        with self._lock:
            found = self._recent.get(response_id)
        return found or (find_response(self._file, response_id) if self._file is not None else None)

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None


def find_response(file: Path, response_id: str) -> JournalEntry | None:
    """Look a response up in a journal file; lines cut short by a crash are skipped."""
    if not file.is_file():
        return None
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if response_id in line:
                try:
                    values: dict[str, Any] = json.loads(line)
                    entry = JournalEntry(**values)
                except (ValueError, TypeError):
                    continue
                if entry.id == response_id:
                    return entry
    return None


def _end_last_line(file: Path) -> None:
    """End a line that a crash cut short, so that the next entry begins its own."""
    if not file.exists() or file.stat().st_size == 0:
        return
    with file.open("rb+") as handle:
        handle.seek(-1, 2)
        if handle.read(1) != b"\n":
            handle.write(b"\n")
