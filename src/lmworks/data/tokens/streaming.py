"""A token store at a URL: its index is read at once, a shard when a document of it is first asked for.

Shards lie in a local cache, checked against the checksums of the artifact's manifest as they come; the least recently
used ones leave when there are too many. Knows neither tokenizers nor texts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmworks.core.errors import ArtifactError, disk_errors, require
from lmworks.core.lineage import MANIFEST, sha256
from lmworks.data.tokens.token_store import ENDS, INDEX, StoreIndex, map_array, shard_name, token_dtype

_BLOCK = 1 << 22


class StreamedTokenStore:
    """Read access to one split of a tokens artifact at a URL that fsspec opens; as `TokenStore`.

    Args:
        url: the split's folder, e.g. `s3://bucket/tokens/train`; the artifact's manifest is in the folder above.
        cache: local folder; shards that are there already and whole are not brought again.
        max_shards: kept in the cache at once; 0 keeps all.

    Raises:
        ArtifactError: no store is there, or what came does not match the manifest.
        MissingExtraError: fsspec is not installed.
    """

    def __init__(self, url: str, cache: Path | str, max_shards: int = 0) -> None:
        require("fsspec", "cloud")
        fsspec: Any = import_module("fsspec")
        self.url, self._cache, self._max_shards = url.rstrip("/"), Path(cache), max_shards
        try:
            self._storage, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError, OSError) as error:
            raise ArtifactError(
                f"{url} cannot be opened: {error}", "Install the fsspec package of that storage"
            ) from None
        self._root = root.rstrip("/")
        above, _, self._split = self._root.rpartition("/")
        try:
            with self._storage.open(f"{above}/{MANIFEST}", "rb") as file:
                self._sums: dict[str, str] = json.load(file)["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"{url} has no readable {MANIFEST} in the folder above it: {error}"
            raise ArtifactError(problem, "Copy whole tokens artifacts, with their manifest") from None
        self._cache.mkdir(parents=True, exist_ok=True)
        index = StoreIndex.parse(json.loads(self._bring(INDEX).read_text(encoding="utf-8")))
        self.vocab_size, self.num_tokens, self.num_bytes = index.vocab_size, index.num_tokens, index.num_bytes
        self._ends = map_array(self._bring(ENDS), np.dtype("<u8"), index.num_documents)
        self._sizes = index.shard_tokens
        self._starts = np.concatenate([[0], np.cumsum(index.shard_tokens)]).astype(np.int64)
        self._shards: OrderedDict[int, NDArray[Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> NDArray[np.unsignedinteger]:
        """The token ids of one document, as a view of its shard in the cache."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        start = int(self._ends[index - 1]) if index else 0
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        base = int(self._starts[number])
        return self._shard(number)[start - base : int(self._ends[index]) - base]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[documents] tokens in each document."""
        ends = np.asarray(self._ends, dtype=np.int64)
        return ends - np.concatenate([[0], ends[:-1]])[: len(ends)]

    def _shard(self, number: int) -> NDArray[Any]:
        if number not in self._shards:
            file = self._bring(shard_name(number))
            self._shards[number] = map_array(file, token_dtype(self.vocab_size), self._sizes[number])
            while self._max_shards and len(self._shards) > self._max_shards:
                # Views that are still held keep a file's pages after its name is gone.
                left, _ = self._shards.popitem(last=False)
                (self._cache / shard_name(left)).unlink(missing_ok=True)
        self._shards.move_to_end(number)
        return self._shards[number]

    def _bring(self, name: str) -> Path:
        """A file of the store in the cache, whole and checked."""
        file, key = self._cache / name, f"{self._split}/{name}"
        expected = self._sums.get(key)
        if expected is None:
            raise ArtifactError(f"{self.url}: the manifest does not list {key}", "Give a split of a tokens artifact")
        if file.is_file() and sha256(file) == expected:
            return file
        partial = file.with_name(f"{name}.{os.getpid()}.partial")
        digest = hashlib.sha256()
        try:
            with (
                self._storage.open(f"{self._root}/{name}", "rb") as source,
                disk_errors(file),
                partial.open("wb") as out,
            ):
                while block := source.read(_BLOCK):
                    digest.update(block)
                    out.write(block)
            if digest.hexdigest() != expected:
                raise ArtifactError(f"{self.url}/{name} does not match its manifest", "Upload the artifact anew")
            partial.replace(file)
        except OSError as error:
            raise ArtifactError(
                f"{self.url}/{name} cannot be read: {error}", "Check the address and try again"
            ) from None
        finally:
            partial.unlink(missing_ok=True)
        return file
