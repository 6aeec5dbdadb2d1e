"""Files that clients upload and batches write: a folder, bounded, each file visible to its owner alone.

A file is `<id>` beside `<id>.json`, which is written last and by renaming, so that none is ever half there.
Knows no route.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, Literal

from lmworks.core.errors import ServerError, disk_errors
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.files import FileObject

MAX_FILES = 10_000
FILE_ID = re.compile(r"file-[0-9a-f]{32}")


class FileStore:
    """The files of one server.

    Args:
        folder: where they lie and are found again after a restart; None takes a temporary one.

    Raises:
        ServerError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._given = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._files: dict[str, tuple[str, FileObject]] = {}
        """Id to owner and file, the oldest first."""
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServerError(f"the folder of files {folder} cannot be written: {error}", "Choose another") from None
        found = [(values.pop("owner"), FileObject(**values)) for values in read_all(folder, "file-*.json")]
        self._files = {stored.id: (owner, stored) for owner, stored in sorted(found, key=lambda f: f[1].created_at)}

    @property
    def folder(self) -> Path:
        """Where the files lie; a temporary one is made when first asked for."""
        if self._given is not None:
            return self._given
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="lmworks-files-")
        return Path(self._temporary.name)

    @property
    def is_lasting(self) -> bool:
        """Whether the folder may hold something from an earlier server."""
        return self._given is not None

    def add(self, source: Path, owner: str, filename: str, purpose: Literal["batch", "batch_output"]) -> FileObject:
        """Take a file over; `source` is gone afterwards.

        Raises:
            InvalidRequestError: there are too many files.
            DiskFullError: there is no room.
        """
        if len(self._files) >= MAX_FILES:
            raise InvalidRequestError(f"There are {MAX_FILES} files already", "Delete some", status=429)
        stored = FileObject(
            id=f"file-{uuid.uuid4().hex}",
            bytes=source.stat().st_size,
            created_at=int(time.time()),
            filename=filename,
            purpose=purpose,
        )
        with disk_errors(self.folder):
            shutil.move(source, self.path(stored.id))
            write_json(self.folder / f"{stored.id}.json", {"owner": owner, **stored.model_dump()})
        self._files[stored.id] = (owner, stored)
        return stored

    def get(self, file_id: str, owner: str) -> FileObject:
        """A client's own file.

        Raises:
            InvalidRequestError: there is none (404).
        """
        found = self._files.get(file_id)
        if found is None or found[0] != owner:
            raise InvalidRequestError(f"No such file: {file_id[:80]!r}", param="file_id", status=404)
        return found[1]

    def list(self, owner: str) -> list[FileObject]:
        """A client's files, the latest first."""
        return [stored for whose, stored in reversed(self._files.values()) if whose == owner]

    def delete(self, file_id: str, owner: str) -> None:
        """Forget a client's own file; errors as in `get`."""
        self.get(file_id, owner)
        del self._files[file_id]
        (self.folder / f"{file_id}.json").unlink(missing_ok=True)
        self.path(file_id).unlink(missing_ok=True)

    def path(self, file_id: str) -> Path:
        """Where a file's content lies."""
        assert FILE_ID.fullmatch(file_id), "ids are made here"
        return self.folder / file_id

    def close(self) -> None:
        """Remove a temporary folder."""
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None


def read_all(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """The values of small files that `write_json` wrote."""
    return [json.loads(entry.read_text(encoding="utf-8")) for entry in folder.glob(pattern)]


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a small file by renaming."""
    half = path.with_suffix(".half")
    half.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    half.replace(path)
