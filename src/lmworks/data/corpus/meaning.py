"""Of the documents that stay, those that say the same in other words are dropped, by embeddings of any `Embedder`.

Documents are taken in an order that follows from their content, so the outcome does not depend on the order of the
inputs. Embeddings lie in the workspace, in files of some hundred: a run that was killed goes on with those that are
not there yet. Knows no model and no rule of cleaning.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmworks.core.config import Config
from lmworks.core.generation import Embedder
from lmworks.core.lineage import content_hash
from lmworks.core.progress import bar
from lmworks.data.corpus.index import Index
from lmworks.data.deduplication.semantic import semantic_duplicates

_AT_ONCE = 512
"""Texts embedded together and kept in one file."""


class SemanticConfig(Config):
    """How alike two documents must be to say the same, and which one stays."""

    embedder: Path
    """Folder of an embedding model, as of sentence-transformers; of a long document it sees the beginning alone."""
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Least cosine of two embeddings."""
    clusters: Annotated[int | None, Field(ge=1)] = None
    """Of k-means; only documents of one cluster are compared. None takes one per ten thousand documents."""
    keep: Literal["hard", "easy", "longest", "first"] = "hard"
    """Which stays: far from its cluster's center, as in SemDeDup; near it; the longest; the first of the inputs."""
    seed: int = 0
    """Chooses the first centers."""


@dataclass(frozen=True)
class SemanticDedup:
    """A configuration with its model.

    Args:
        config: see there.
        embedder: the model of `config.embedder`.
        folder: for embeddings; about `4 × dimensions` bytes a document, twice that while they are joined.
    """

    config: SemanticConfig
    embedder: Embedder
    folder: Path

    def __call__(self, index: Index, kept: NDArray[np.bool_]) -> SemanticFindings:
        """Compare the kept documents that have words; the others stay.

        In memory lie one cluster's embeddings and a sample of 256 for each cluster; all are mapped from a file.

        Raises:
            DataError: the model gives an embedding of no length, or not finite.
        """
        records = index.records
        chosen = index.by_content(np.flatnonzero(kept & (records["words"] > 0)))
        keep = self.config.keep
        ranks = -records["characters"] if keep == "longest" else np.arange(len(records))
        found = semantic_duplicates(
            self._embeddings(index, chosen),
            self.config.threshold,
            clusters=self.config.clusters,
            keep="first" if keep == "longest" else keep,
            seed=self.config.seed,
            ranks=ranks[chosen],
        )
        dropped = np.flatnonzero(~found.kept)
        sizes = np.bincount(found.clusters)
        lost = np.bincount(found.clusters[dropped], minlength=len(sizes))
        return SemanticFindings(
            chosen[dropped],
            chosen[found.winners[dropped]],
            found.similarity[dropped],
            found.clusters[dropped],
            tuple(zip(sizes.tolist(), lost.tolist(), strict=True)),
        )

    def _embeddings(self, index: Index, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """[chosen, dimensions] mapped from a file."""
        self.folder.mkdir(exist_ok=True)
        files = []
        with bar("embed documents", len(chosen)) as progress:
            for file, numbers in self._files(index, chosen):
                if not file.exists():
                    vectors = self.embedder.embed([document.text for document in index.documents(numbers)])
                    _save(file, np.asarray(vectors, np.float32))
                files.append(file)
                progress.advance(len(numbers))
        return _join(files, len(chosen), self.folder / "joined.npy")

    def _files(self, index: Index, chosen: NDArray[np.int64]) -> Iterator[tuple[Path, list[int]]]:
        """Where embeddings belong, and of which documents; a name tells the texts and the model."""
        model = content_hash(self.config.embedder)
        for begin in range(0, len(chosen), _AT_ONCE):
            some = chosen[begin : begin + _AT_ONCE]
            told = model.encode() + index.records["digest"][some].tobytes()
            yield self.folder / f"{hashlib.blake2b(told, digest_size=16).hexdigest()}.npy", some.tolist()


@dataclass(frozen=True)
class SemanticFindings:
    """What was dropped, by numbers of documents among all."""

    dropped: NDArray[np.int64]
    winners: NDArray[np.int64]
    """[dropped] the document that stays and says the same."""
    similarity: NDArray[np.float32]
    """[dropped] cosine to it."""
    clusters: NDArray[np.int64]
    """[dropped]"""
    sizes: tuple[tuple[int, int], ...]
    """Of each cluster: documents, and how many of them were dropped."""


def _save(file: Path, vectors: NDArray[np.float32]) -> None:
    """Whole or not at all."""
    staging = file.with_suffix(f".tmp-{os.getpid()}.npy")
    np.save(staging, vectors)
    staging.rename(file)


def _join(files: Sequence[Path], count: int, joined: Path) -> NDArray[np.float32]:
    if not files:
        return np.empty((0, 1), np.float32)
    dimensions = np.load(files[0], mmap_mode="r").shape[1]
    whole = np.lib.format.open_memmap(joined, "w+", np.float32, (count, dimensions))
    begin = 0
    for file in files:
        part = np.load(file)
        whole[begin : begin + len(part)] = part
        begin += len(part)
    return whole
