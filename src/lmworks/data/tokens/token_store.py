"""Documents as token ids in memory-mapped shards, read without loading them.

A tokens artifact holds one folder per split; a split folder holds `store.json`, `ends.bin` (int64
cumulative document ends over all shards) and `shard-00000.bin`, … (uint16 or uint32, whole documents).
Their checksums are the lineage manifest's. Knows neither tokenizers nor text.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from array import array
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import numpy as np
from numpy.typing import NDArray

from lmworks.core.config import Config
from lmworks.core.errors import ArtifactError, ConfigError, DataError
from lmworks.data.tokens.by_ends import DocumentsByEnds, Ids, ascending

INDEX = "store.json"
ENDS = "ends.bin"
TOKENS_PER_SHARD = 1 << 28
_REMEDY = "Run the tokenize stage again"


def token_dtype(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """The smallest unsigned type that holds every id of a vocabulary: uint16 up to 65,536 entries."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class StoreIndex(Config):
    """What `store.json` holds."""

    dtype: Literal["uint16", "uint32"]
    vocab_size: int
    num_documents: int
    num_tokens: int
    num_bytes: int
    shard_tokens: tuple[int, ...]


class TokenStoreWriter:
    """Appends documents to a split folder; the store becomes readable when the block ends without error.

    Args:
        folder: created; must not hold a store yet.
        vocab_size: every id must be below it.
        tokens_per_shard: a new shard begins once this many tokens are in the current one.
    """

    def __init__(self, folder: Path, vocab_size: int, tokens_per_shard: int = TOKENS_PER_SHARD) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._vocab_size, self._tokens_per_shard = folder, vocab_size, tokens_per_shard
        self._dtype = token_dtype(vocab_size)
        self._shard: BinaryIO | None = None
        self._shard_tokens: list[int] = []
        self._ends = array("q")
        self.num_bytes = 0
        """UTF-8 bytes of the texts added so far."""

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return len(self._ends)

    @property
    def num_tokens(self) -> int:
        """Tokens added so far."""
        return self._ends[-1] if self._ends else 0

    def add(self, documents: Iterable[tuple[list[int], int]]) -> None:
        """Append documents, each `(token_ids, num_bytes)` with the size of its text in UTF-8 bytes.

        Raises:
            DataError: a document is empty or an id lies outside the vocabulary.
        """
        for token_ids, num_bytes in documents:
            ids = np.asarray(token_ids, dtype=np.int64)
            number = len(self._ends)
            if ids.size == 0:
                raise DataError(f"document {number} has no tokens", "Leave empty documents out")
            if ids.min() < 0 or ids.max() >= self._vocab_size:
                raise DataError(
                    f"document {number}: ids {ids.min()}..{ids.max()} leave the vocabulary of {self._vocab_size}",
                    "Use the tokenizer whose vocabulary size was given",
                )
            if self._shard is None or self._shard_tokens[-1] >= self._tokens_per_shard:
                self._next_shard()
            assert self._shard is not None
            self._shard.write(ids.astype(self._dtype).tobytes())
            self._shard_tokens[-1] += ids.size
            self._ends.append(self.num_tokens + ids.size)
            self.num_bytes += num_bytes

    def _next_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shard = (self._folder / shard_name(len(self._shard_tokens))).open("wb")
        self._shard_tokens.append(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shard is not None:
            self._shard.close()
        if kind is None:
            np.asarray(self._ends, dtype="<i8").tofile(self._folder / ENDS)
            index = StoreIndex(
                dtype="uint16" if self._dtype.itemsize == 2 else "uint32",
                vocab_size=self._vocab_size,
                num_documents=self.num_documents,
                num_tokens=self.num_tokens,
                num_bytes=self.num_bytes,
                shard_tokens=tuple(self._shard_tokens),
            )
            (self._folder / INDEX).write_text(index.model_dump_json(indent=2) + "\n", encoding="utf-8")


class ShardedDocuments(DocumentsByEnds):
    """Documents in shards of which each holds whole ones.

    Args:
        folder: named in errors.
        index: of the store.
        ends: [documents] the file of the documents' ends.
        opened_with: arguments of its class.

    Raises:
        ArtifactError: the ends do not ascend, or are not those of the index and its shards.
    """

    def __init__(self, folder: str, index: StoreIndex, ends: Path, opened_with: tuple[Any, ...]) -> None:
        super().__init__(map_array(ends, np.dtype("<i8"), index.num_documents), opened_with)
        self.vocab_size = index.vocab_size
        self.num_bytes = index.num_bytes
        """UTF-8 bytes of the texts, for bits per byte and bytes per token."""
        self._shard_tokens = index.shard_tokens
        self._shard_starts = np.concatenate([[0], np.cumsum(index.shard_tokens)]).astype(np.int64)
        if not self.num_tokens == index.num_tokens == int(self._shard_starts[-1]):
            raise ArtifactError(
                f"{folder}: {INDEX} counts {index.num_tokens} tokens, {ENDS} ends at {self.num_tokens} "
                f"and the shards hold {self._shard_starts[-1]}",
                _REMEDY,
            )
        if not ascending(self._ends) or not np.isin(self._shard_starts[1:], self._ends).all():
            raise ArtifactError(f"{folder}: {ENDS} is damaged: the ends do not ascend from shard to shard", _REMEDY)

    def _tokens(self, begin: int, end: int) -> Ids:
        number = int(np.searchsorted(self._shard_starts, begin, side="right")) - 1
        base = int(self._shard_starts[number])
        return self._shard(number)[begin - base : end - base]

    @abstractmethod
    def _shard(self, number: int) -> Ids:
        """The tokens of one shard."""


class TokenStore(ShardedDocuments):
    """Read access to one split of a tokens artifact: `len(store)` documents, `store[i]` the ids of one.

    Sizes are checked here; checksums where an artifact is verified, as `lmworks.core.lineage.verify` does.

    Args:
        path: the split's folder, e.g. `tokens/train`.

    Raises:
        ArtifactError: no store is there, or a file is missing, truncated or inconsistent.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        index = read_index(self.path)
        super().__init__(str(path), index, self.path / ENDS, (path,))
        dtype = token_dtype(index.vocab_size)
        self._shards = [map_array(self.path / shard_name(n), dtype, size) for n, size in enumerate(index.shard_tokens)]

    def _shard(self, number: int) -> Ids:
        return self._shards[number]


def shard_name(number: int) -> str:
    """The file of the shard of this number, from 0."""
    return f"shard-{number:05d}.bin"


def read_index(folder: Path) -> StoreIndex:
    """What a folder's `store.json` says.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    file = folder / INDEX
    if not file.is_file():
        inside = splits_in(folder)
        remedy = f"Give one of its splits: {', '.join(inside)}" if inside else "Run the tokenize stage first"
        raise ArtifactError(f"{folder} is not a token store: it has no {INDEX}", remedy)
    try:
        index = StoreIndex.parse(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError, ConfigError) as error:
        raise ArtifactError(f"{file} is damaged: {error}", _REMEDY) from None
    if index.dtype != token_dtype(index.vocab_size).name:
        raise ArtifactError(f"{file} is damaged: {index.vocab_size} ids are not stored as {index.dtype}", _REMEDY)
    return index


def splits_in(folder: Path) -> list[str]:
    """The folders of splits in an artifact's folder."""
    return [str(folder / name) for name in ("train", "validation") if (folder / name / INDEX).is_file()]


def map_array(file: Path, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """Map `count` items of a file, whose size must be exactly theirs.

    Raises:
        ArtifactError: it has another size, or is not there.
    """
    expected = count * dtype.itemsize
    size = file.stat().st_size if file.is_file() else None
    if size != expected:
        found = "is missing" if size is None else f"has {size} bytes"
        raise ArtifactError(f"{file} {found}, its index says {expected}", "Restore it or run the tokenize stage again")
    return np.memmap(file, dtype=dtype, mode="r", shape=(count,)) if count else np.empty(0, dtype=dtype)
