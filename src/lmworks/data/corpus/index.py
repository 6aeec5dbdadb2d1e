"""What is remembered of every cleaned document, so that decisions about all of them need none of their texts.

A unit's folder holds `documents.jsonl`, this index beside it, and a tally. Knows no rule and no decision.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lmworks.core.generation import Document
from lmworks.data.deduplication.fingerprints import DedupConfig, Fingerprints, digest, fingerprint
from lmworks.data.steps import Tally

DOCUMENTS, RECORDS, SIGNATURES, LABELS, TALLY = (
    "documents.jsonl", "records.npy", "signatures.npy", "labels.json", "tally.json"
)  # fmt: skip
RECORD = np.dtype(
    [
        ("offset", "<i8"), ("bytes", "<i8"), ("characters", "<i8"), ("words", "<i8"),
        ("key", "<u8", (2,)), ("digest", "<u8"), ("identity", "<u8"),
        ("url", "<u8"), ("simhash", "<u8"),
        ("license", "<i4"), ("source", "<i4"), ("language", "<i4"),
    ]
)  # fmt: skip
"""One document: place and size of its text, digests, and numbers of its labels. `identity` is a hash of its id."""
LABELLED = ("license", "source", "language")


class Labels:
    """Names as numbers, in the order in which they were met."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}

    def number(self, name: str) -> int:
        """Of a name; a new one is added."""
        return self.names.setdefault(name, len(self.names))


def write_unit(folder: Path, documents: Sequence[Document], tally: Tally, dedup: DedupConfig) -> None:
    """Write a unit's cleaned documents with their index and tally into an existing folder."""
    texts = [document.text for document in documents]
    prints = fingerprint(texts, dedup, [str(document.meta.get("url") or "") for document in documents])
    records = np.zeros(len(documents), RECORD)
    labels = {name: Labels() for name in LABELLED}
    with (folder / DOCUMENTS).open("wb") as sink:
        for number, document in enumerate(documents):
            records[number]["offset"] = sink.tell()
            records[number]["bytes"] = len(document.text.encode())
            for name, value in zip(LABELLED, _labels(document), strict=True):
                records[number][name] = labels[name].number(value)
            sink.write(line_of(document))
    records["key"], records["digest"] = prints.keys, prints.digests
    records["characters"], records["words"] = prints.characters, prints.words
    records["url"], records["simhash"] = prints.urls, prints.simhashes
    records["identity"] = np.frombuffer(b"".join(digest(document.id) for document in documents), "<u8")
    np.save(folder / RECORDS, records)
    np.save(folder / SIGNATURES, prints.signatures)
    (folder / LABELS).write_text(json.dumps({name: list(made.names) for name, made in labels.items()}))
    (folder / TALLY).write_text(json.dumps(tally.to_dict(), ensure_ascii=False), encoding="utf-8")


def line_of(document: Document) -> bytes:
    """A document as a row of `.jsonl`."""
    row: dict[str, Any] = {
        "id": document.id, "text": document.text, "source": document.source, "license": document.license
    }  # fmt: skip
    if document.meta:
        row["meta"] = document.meta
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def document_of(line: bytes) -> Document:
    """What `line_of` wrote."""
    row = json.loads(line)
    return Document(row["id"], row["text"], row["source"], row["license"], row.get("meta", {}))


def _labels(document: Document) -> tuple[str, str, str]:
    """Licence, the input that a document came from, and its language where a step told it."""
    return document.license, input_name(document), document.meta.get("language", "")


def input_name(document: Document) -> str:
    """Of the input that a document came from: the first part of its source, or the host where that is an address."""
    scheme, _, address = document.source.partition("://")
    return (address or scheme.partition(":")[0]).partition("/")[0]


@dataclass(frozen=True)
class Index:
    """The documents of all units, in order."""

    folders: tuple[Path, ...]
    counts: tuple[int, ...]
    """Documents of each unit."""
    records: NDArray[Any]
    """[documents] of `RECORD`, labels numbered over all units."""
    labels: dict[str, tuple[str, ...]]
    signatures: NDArray[np.uint32]
    """[bands, documents, rows], mapped from a file."""

    @classmethod
    def read(cls, folders: Sequence[Path], joined: Path) -> Index:
        """Join the indexes of units.

        Args:
            folders: of the units.
            joined: file for all signatures; replaced.
        """
        labels = {name: Labels() for name in LABELLED}
        parts = []
        for folder in folders:
            part = np.load(folder / RECORDS)
            for name, names in json.loads((folder / LABELS).read_text()).items():
                numbers = np.asarray([labels[name].number(value) for value in names], np.int32)
                part[name] = numbers[part[name]] if len(names) else part[name]
            parts.append(part)
        counts = tuple(len(part) for part in parts)
        records = np.concatenate(parts) if parts else np.zeros(0, RECORD)
        signatures = _join([folder / SIGNATURES for folder in folders], counts, joined)
        return cls(
            tuple(folders), counts, records, {name: tuple(made.names) for name, made in labels.items()}, signatures
        )

    def fingerprints(self) -> Fingerprints:
        """What deduplication needs."""
        records = self.records
        return Fingerprints(
            records["key"], records["digest"], records["characters"], records["words"], self.signatures,
            records["url"], records["simhash"],
        )  # fmt: skip

    def slices(self) -> Iterator[tuple[Path, slice]]:
        """Each unit's folder, and where its documents are among all."""
        begin = 0
        for folder, count in zip(self.folders, self.counts, strict=True):
            yield folder, slice(begin, begin + count)
            begin += count

    def by_content(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers in an order that follows from the documents alone, not from that of the inputs."""
        records = self.records[numbers]
        content = (records["identity"], records["digest"], records["key"][:, 1], records["key"][:, 0])
        return numbers[np.lexsort(content)]

    def documents(self, numbers: Sequence[int]) -> Iterator[Document]:
        """Read some documents, in the order given."""
        ends = np.cumsum(self.counts)
        opened: dict[int, IO[bytes]] = {}
        try:
            for number in numbers:
                unit = int(np.searchsorted(ends, number, side="right"))
                if unit not in opened:
                    for stream in opened.values():
                        stream.close()
                    opened = {unit: (self.folders[unit] / DOCUMENTS).open("rb")}
                opened[unit].seek(int(self.records["offset"][number]))
                yield document_of(opened[unit].readline())
        finally:
            for stream in opened.values():
                stream.close()


def _join(files: Sequence[Path], counts: Sequence[int], joined: Path) -> NDArray[np.uint32]:
    """All signatures in one mapped file, so that no more of them than are looked at lie in memory."""
    if not files or not sum(counts):
        return np.zeros((0, 0, 1), np.uint32)
    bands, _, rows = np.load(files[0], mmap_mode="r").shape
    total = sum(counts)
    with joined.open("wb") as sink:  # not through a mapping: a full device would kill the process without a word
        begin = 0
        for file, count in zip(files, counts, strict=True):
            for band, part in enumerate(np.load(file)):
                sink.seek((band * total + begin) * rows * 4)
                sink.write(part.tobytes())
            begin += count
    return np.memmap(joined, np.uint32, "r", shape=(bands, total, rows))
