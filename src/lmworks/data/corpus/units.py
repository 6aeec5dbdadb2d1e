"""The units of work of a corpus: files, groups of small files, and parts of large ones.

Which documents a unit holds follows from the inputs alone, never from who works. Knows no cleaning rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmworks.core.generation import Document
from lmworks.data.corpus.inputs import Input, Treatment
from lmworks.data.extraction.files import RemoteFile
from lmworks.data.extraction.sources import InputFile, Lines, Rejection, input_files, parts, read_file

UNIT_BYTES = 32 << 20
UNIT_FILES = 1000


@dataclass(frozen=True)
class Unit:
    """Files, or a part of one, that one worker reads."""

    name: str
    """Digits; units in the order of their names give the documents in the order of the inputs."""
    files: tuple[InputFile, ...]
    treatment: Treatment
    part: Lines | None = None
    """Of the only file."""
    max_documents: int | None = None
    max_bytes: int | None = None

    def documents(self) -> Iterator[Document | Rejection]:
        """What the unit holds, up to its limits."""
        count = size = 0
        for file in self.files:
            for item in read_file(file, self.treatment.fields, self.part):
                yield item
                if isinstance(item, Document):
                    count += 1
                    size += len(item.text.encode("utf-8", "surrogatepass"))
                if (self.max_documents and count >= self.max_documents) or (self.max_bytes and size >= self.max_bytes):
                    return

    def fingerprint(self) -> str:
        """Changes when a file of the unit does."""
        stats = [(file.place, *_identity(file.file)) for file in self.files]
        return hashlib.blake2b(repr((stats, self)).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _identity(file: Path | RemoteFile) -> tuple[int, int]:
    """Size and version; zeros of what is not there any more or never was, which reading then rejects by name."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def units_of(inputs: Sequence[Input], *, max_documents: int | None = None, max_bytes: int | None = None) -> list[Unit]:
    """The work that inputs make.

    Args:
        inputs: places to read, with their treatment.
        max_documents: of all inputs together, an equal share from the beginning of each.
        max_bytes: of text, shared alike.

    Raises:
        DataError: an input does not exist or holds nothing that can be read.
        ArtifactError: a source artifact's files do not match its manifest.
    """
    limits = [most and -(-most // len(inputs)) for most in (max_documents, max_bytes)]
    made: list[Unit] = []
    for given in inputs:
        files = input_files(given.path)
        # A share is counted from the front, so one worker reads it.
        for group, part in [(files, None)] if any(limits) else _groups(files):
            made.append(Unit(f"{len(made):06d}", tuple(group), given.treatment, part, *limits))
    return made


def _groups(files: Sequence[InputFile]) -> Iterator[tuple[Sequence[InputFile], Lines | None]]:
    """Small files together, each part of a large one alone."""
    pending: list[InputFile] = []
    pending_bytes = 0
    for file in files:
        size, _ = _identity(file.file)
        found = parts(file.file, UNIT_BYTES) if size > UNIT_BYTES and not file.refused else [None]
        if pending and (pending_bytes >= UNIT_BYTES or len(pending) >= UNIT_FILES or len(found) > 1):
            yield pending, None
            pending, pending_bytes = [], 0
        if len(found) > 1:
            yield from (([file], part) for part in found)
        else:
            pending.append(file)
            pending_bytes += size
    if pending:
        yield pending, None
