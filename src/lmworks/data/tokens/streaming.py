"""A token store at a URL: its index is read at once, a shard when a document of it is first asked for.

Shards lie in a local cache, checked against the checksums of the artifact's manifest when a process first uses them;
the least recently used ones leave when there are too many. Several processes may share a cache. Knows neither
tokenizers nor texts.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from lmworks.core.errors import ArtifactError, disk_errors, require
from lmworks.core.lineage import MANIFEST, sha256
from lmworks.data.tokens.by_ends import Ids
from lmworks.data.tokens.token_store import (
    ENDS,
    INDEX,
    ShardedDocuments,
    map_array,
    read_index,
    shard_name,
    token_dtype,
)

Found = TypeVar("Found")

_BLOCK = 1 << 22
WAITS = (0.5, 2.0, 8.0)
"""Seconds before a file is asked for again that did not come whole."""
_STALE_SECONDS = 3600
"""After so long without a change, part of a file was left by a process that was killed."""


class StreamedTokenStore(ShardedDocuments):
    """Read access to one split of a tokens artifact at a URL that fsspec opens; as `TokenStore`.

    Args:
        url: the split's folder, e.g. `s3://bucket/tokens/train`; the artifact's manifest is in the folder above.
        cache: local folder for this store alone; shards that are there already and whole are not brought again.
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
        manifest = f"{above}/{MANIFEST}"
        try:
            text = self._patiently(manifest, lambda: b"".join(self._blocks(manifest)))
            self._sums: dict[str, str] = json.loads(text)["files"]
        except (ArtifactError, ValueError, KeyError, TypeError) as error:
            problem = f"{url} has no readable {MANIFEST} in the folder above it: {error}"
            raise ArtifactError(problem, "Copy whole tokens artifacts, with their manifest") from None
        self._cache.mkdir(parents=True, exist_ok=True)
        for part in self._cache.glob("*.partial"):
            if time.time() - _changed(part) > _STALE_SECONDS:
                part.unlink(missing_ok=True)
        index = read_index(self._bring(INDEX).parent)
        super().__init__(self.url, index, self._bring(ENDS), (url, cache, max_shards))
        self._shards: OrderedDict[int, Ids] = OrderedDict()

    def _shard(self, number: int) -> Ids:
        if number not in self._shards:
            self._shards[number] = self._mapped(shard_name(number), self._shard_tokens[number])
            if self._max_shards:
                self._forget()
        self._shards.move_to_end(number)
        return self._shards[number]

    def _mapped(self, name: str, tokens: int) -> Ids:
        while True:
            file = self._bring(name)
            try:
                os.utime(file)
                return map_array(file, token_dtype(self.vocab_size), tokens)
            except (ArtifactError, FileNotFoundError):
                if file.exists():
                    raise  # else another process made room in the cache just now

    def _forget(self) -> None:
        """Keep the shards that were used last. Views that are held keep a file's pages after its name is gone."""
        while len(self._shards) > self._max_shards:
            self._shards.popitem(last=False)
        mapped = {shard_name(number) for number in self._shards}
        by_use = sorted(self._cache.glob("shard-*.bin"), key=lambda file: (file.name in mapped, _changed(file)))
        for file in by_use[: -self._max_shards]:
            file.unlink(missing_ok=True)

    def _bring(self, name: str) -> Path:
        """A file of the store in the cache, whole and checked."""
        file, key = self._cache / name, f"{self._split}/{name}"
        expected = self._sums.get(key)
        if expected is None:
            raise ArtifactError(f"{self.url}: the manifest does not list {key}", "Give a split of a tokens artifact")
        try:
            if sha256(file) == expected:
                return file
        except FileNotFoundError:
            pass
        return self._patiently(f"{self._root}/{name}", lambda: self._download(name, file, expected))

    def _download(self, name: str, file: Path, expected: str) -> Path | None:
        """The file, if what came is what the manifest lists."""
        partial = file.with_name(f"{name}.{os.getpid()}.partial")
        digest = hashlib.sha256()
        try:
            with disk_errors(file), partial.open("wb") as out:
                for block in self._blocks(f"{self._root}/{name}"):
                    digest.update(block)
                    out.write(block)
            return partial.replace(file) if digest.hexdigest() == expected else None
        finally:
            partial.unlink(missing_ok=True)

    def _blocks(self, path: str) -> Iterator[bytes]:
        try:
            with self._storage.open(path, "rb") as source:
                while block := source.read(_BLOCK):
                    yield block
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            if not _may_pass(error):
                raise ArtifactError(f"{path} cannot be read: {error!r}", "Check the address") from None
            cause = error.__cause__ or error
            raise _TransientError(f"{type(cause).__name__}: {cause}") from None

    def _patiently(self, path: str, attempt: Callable[[], Found | None]) -> Found:
        """What an attempt brings; it is made again where a storage fails or what it sends is not what was written."""
        for wait in (*WAITS, None):
            try:
                if (found := attempt()) is not None:
                    return found
                problem = "does not match its manifest: it was changed or damaged", "Upload the whole artifact anew"
            except _TransientError as error:
                problem = f"cannot be read: {error}", "Check the storage and try again"
            if wait is not None:
                time.sleep(wait)
        raise ArtifactError(f"{path} of {self.url} {problem[0]}", problem[1])


class _TransientError(Exception):
    """A storage failed in a way that may pass."""


def _may_pass(error: Exception) -> bool:
    """All but a file that is not there or not ours; fsspec says that of a server that does not answer, too."""
    cause = error.__cause__
    unreachable = isinstance(cause, OSError) or getattr(cause, "status", 0) >= 500
    return unreachable or not isinstance(error, (FileNotFoundError, PermissionError))


def _changed(file: Path) -> float:
    """When, in seconds; long ago for what another process has just removed."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
