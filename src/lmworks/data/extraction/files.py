"""Which files an input holds, here or at a URL of fsspec, and how each is opened. Knows no format's contents."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lmworks.core.errors import DataError, require
from lmworks.core.lineage import MANIFEST, verify
from lmworks.data.extraction.archives import ARCHIVES
from lmworks.data.extraction.code import NAMES
from lmworks.data.extraction.compression import COMPRESSIONS, compression
from lmworks.data.extraction.extract import EXTRACTED
from lmworks.data.extraction.folders import entries, readable_name

ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
COLLECTIONS = (".warc", ".wet", ".mbox")
SUPPORTED = (*EXTRACTED, *ROW_SUFFIXES, *COLLECTIONS, *ARCHIVES)
_SHORT = {".tgz": [".tar", ".gz"], ".tbz2": [".tar", ".bz2"], ".txz": [".tar", ".xz"], ".tzst": [".tar", ".zst"]}
_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]+):(/+)(?:localhost/)?", re.IGNORECASE)
_LISTED_KINDS = ".txt .md .html .pdf .epub .docx .odt .eml .mbox .ipynb .jsonl .json .parquet .csv .tsv .warc .wet"


@dataclass(frozen=True)
class RemoteStatus:
    """What is known of a remote file, under the names of `os.stat`."""

    st_size: int
    st_mtime_ns: int
    """Of a store that tells tags or dates as words, a number that changes with them."""


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL that fsspec opens; of a `Path` it has what reading needs."""

    url: str

    @property
    def name(self) -> str:
        """Last part of the path."""
        head, _, _ = self.url.partition("::")
        return PurePosixPath((head if "://" in head else self.url).partition("?")[0]).name

    @property
    def suffixes(self) -> list[str]:
        """As of a `Path`."""
        return PurePosixPath(self.name).suffixes

    def stat(self) -> RemoteStatus:
        """Size and version, as far as the store tells them."""
        system, path = _file_system(self.url)
        info = system.info(path)
        version = repr([info.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "created")])
        return RemoteStatus(
            int(info.get("size") or 0), int.from_bytes(hashlib.sha256(version.encode()).digest()[:7], "big")
        )

    def open(self, mode: str = "rb") -> Any:
        """A file object that can be sought in."""
        system, path = _file_system(self.url)
        return system.open(path, mode)


@dataclass(frozen=True)
class InputFile:
    """A file that may hold documents."""

    file: Path | RemoteFile
    place: str
    """Its name in reports: relative to the input, so that it is the same on every machine."""
    refused: str = ""
    """Why it is not read, as it is counted; empty for a file to read."""
    why: str = ""


def input_files(path: Path | str) -> list[InputFile]:
    """The files of a source artifact, a folder (in the order of its paths), or the file itself.

    Args:
        path: on this machine, or a URL such as `s3://bucket/folder`.

    Raises:
        DataError: there is nothing at `path`, or nothing of a kind that can be read.
        ArtifactError: a source artifact's files do not match its manifest.
    """
    url = "::".join(_restored(link) for link in str(path).split("::"))
    if url.startswith("file://"):
        path = url.removeprefix("file://")
    elif "://" in url.rpartition("::")[2]:
        return _remote(url)
    path = Path(path)
    if (path / MANIFEST).exists():
        manifest = verify(path)
        file = path / "documents.jsonl"
        if manifest.kind != "source" or not file.is_file():
            held = ", ".join(sorted(manifest.files)) or "nothing"
            raise DataError(
                f"{path} is an artifact of kind {manifest.kind!r} and holds {held}", "Give a source of documents"
            )
        return [InputFile(file, path.name)]
    if path.is_dir():
        found_there = entries(path)
        _some_readable([entry.path for entry in found_there if not entry.refused], path)
        base = readable_name(path.name)
        return [
            InputFile(
                entry.path, f"{base}/{readable_name(entry.path.relative_to(path).as_posix())}", entry.refused, entry.why
            )
            for entry in found_there
        ]
    if path.is_file():
        _readable(path, path)
        return [InputFile(path, readable_name(path.name))]
    what = "is no file and no folder" if path.exists() else "does not exist"
    raise DataError(f"{path} {what}", "Give the path of a file, a folder or a fetched source")


def _restored(link: str) -> str:
    """A URL, or one link of a chain such as `simplecache::s3://bucket`, with the slash that a `Path` takes from it."""
    found = _SCHEME.match(link)
    if not found:
        return link
    scheme = found[1].lower()
    if scheme == "file":
        return f"file:///{link[found.end() :]}"
    return f"{scheme}://{link[found.end(2) :]}"


def _remote(url: str) -> list[InputFile]:
    system, path = _file_system(url)
    try:
        if system.isfile(path):
            file = RemoteFile(url)
            _readable(file, url)
            return [InputFile(file, file.name)]
        root = str(path).strip("/")
        inside = {name.strip("/").removeprefix(root).strip("/"): name for name in system.find(path)}
    except (OSError, ValueError) as error:
        raise DataError(f"{url} cannot be listed: {error}", "Check the address and your access to it") from error
    if not inside:
        raise DataError(f"{url} does not exist or is empty", "Give the URL of a file or of a folder of files")
    found = {name: RemoteFile(_below(url, name)) for name in sorted(inside) if not _hidden(PurePosixPath(name))}
    _some_readable(list(found.values()), url)
    base = RemoteFile(url.rstrip("/")).name
    return [InputFile(file, f"{base}/{name}") for name, file in found.items()]


def _below(url: str, name: str) -> str:
    """The address of a file in a folder: `zip://in.txt::s3://a.zip`, but `simplecache::s3://folder/in.txt`."""
    head, chain, rest = url.partition("::")
    if "://" not in head:
        head, chain, rest = url, "", ""
    return f"{head}{'' if head.endswith('/') else '/'}{name}{chain}{rest}"


def _file_system(url: str) -> tuple[Any, Any]:
    require("fsspec", "data")
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except (ImportError, ValueError, TypeError) as error:  # its package is missing, nobody knows it, it asks for more
        raise DataError(f"{url} cannot be opened: {error}", "Install what fsspec names for it, such as s3fs") from error


def _some_readable(files: list[Any], where: object) -> None:
    if not any(format_of(f)[0] in SUPPORTED or f.name.lower() in NAMES for f in files):
        raise DataError(f"{where} holds {len(files)} files, none of them readable", f"Readable are {_supported()}")


def _readable(file: Path | RemoteFile, where: object) -> None:
    suffix, _ = format_of(file)
    if suffix not in SUPPORTED and file.name.lower() not in NAMES:
        raise DataError(f"{where} has the suffix {suffix!r}", f"Readable are {_supported()}")


def _supported() -> str:
    return f"{_LISTED_KINDS}, code, each also with {' '.join(COMPRESSIONS)}, and {' '.join(ARCHIVES)} of them"


def _hidden(relative: Path | PurePosixPath) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def format_of(file: Path | PurePosixPath | RemoteFile) -> tuple[str, str]:
    """`(suffix that tells the format, compression around it)`, both in lower case and maybe empty."""
    suffixes = [s.lower() for s in file.suffixes]
    if suffixes and suffixes[-1] in _SHORT:
        suffixes[-1:] = _SHORT[suffixes[-1]]
    packed = compression(suffixes)
    if packed:
        suffixes.pop()
    return (suffixes[-1] if suffixes else ""), packed


@contextmanager
def opened(file: Path | RemoteFile) -> Iterator[IO[bytes]]:
    """A file's bytes as they are stored."""
    with file.open("rb") as stream:
        yield stream
