"""Pinned files from package indexes: found, downloaded, verified and cached, their code never run.

Python packages are found through the Simple Repository API (PEP 503 and PEP 691) of the indexes that pip
is configured with, npm packages through the configured registry. A file counts only with its pinned
sha256, so neither index nor mirror needs to be trusted. Knows nothing of what the files hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.parse
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Any, Literal

from lmworks.core.errors import DownloadError, disk_errors
from lmworks.core.lineage import sha256
from lmworks.core.progress import bar, say
from lmworks.data.acquisition.download_cache import cache_folder, sole_writer
from lmworks.data.acquisition.index_settings import IndexSettings, npm_settings, redact
from lmworks.data.acquisition.web import ATTEMPTS, WebClient

CHUNK = 1 << 20
_SIMPLE = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True)
class PackageFile:
    """One file of one release, pinned by digest."""

    registry: Literal["pypi", "npm", "debian"]
    project: str
    version: str
    filename: str
    size: int
    """Bytes."""
    sha256: str


def obtain(file: PackageFile) -> Path:
    """The path of a verified local copy; downloaded only when the cache has none or a damaged one.

    Raises:
        DownloadError: no index can be reached, none has the file, or what they have is another file.
        DiskFullError: the cache's device is full.
    """
    cached = cache_folder() / "packages" / file.sha256[:16] / file.filename
    if is_whole(cached, file):
        return cached
    with sole_writer(cached) as partial:
        if is_whole(cached, file):  # another process had the same wish
            return cached
        if cached.exists():
            say(f"The cached {file.filename} is damaged and is fetched again.")
        _fetch_any(file, partial)
        partial.replace(cached)
    return cached


def is_whole(path: Path, file: PackageFile) -> bool:
    """Whether this very file lies at a path; one that cannot be read does not."""
    try:
        return path.is_file() and path.stat().st_size == file.size and sha256(path) == file.sha256
    except OSError:
        return False


def _fetch_any(file: PackageFile, partial: Path) -> None:
    """Write the file from the first index that has it.

    Raises:
        DownloadError: as `obtain`.
        DiskFullError: as `obtain`.
    """
    settings = IndexSettings.read() if file.registry == "pypi" else npm_settings(file.project)
    problems: list[str] = []
    for place in settings.indexes:
        try:
            client = WebClient(settings.certificate, settings.proxy, settings.timeout, settings.authorization)
            url = _find_pypi(client, place, file) if file.registry == "pypi" else _find_npm(client, place, file)
            with disk_errors(partial):
                _download(client, url, file, partial)
        except (urllib.error.URLError, OSError, ValueError, LookupError) as error:
            problems.append(f"{redact(place)}: {_reason(error)}")
        else:
            return
    kind, option = (
        ("a package index", "PIP_INDEX_URL") if file.registry == "pypi" else ("an npm registry", "npm_config_registry")
    )
    raise DownloadError(
        f"{file.filename} (sha256 {file.sha256}) could not be fetched: "
        f"{'; '.join(problems) or 'pip is configured with no-index, so there is nowhere to look'}",
        f"Check the network, or point {option} to {kind} or mirror that has {file.project} {file.version}; "
        f"a copy you already have may be placed at {cache_folder() / 'packages' / file.sha256[:16] / file.filename}",
    )


def _reason(error: Exception) -> str:
    """What went wrong, in a few words."""
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        return str(error.reason)
    return str(error)


def _find_pypi(client: WebClient, index: str, file: PackageFile) -> str:
    """The file's address in an index.

    Raises:
        LookupError: the index does not list the file.
        ValueError: the index lists a file of that name with another digest.
    """
    page = f"{index.rstrip('/')}/{file.project}/"
    if urllib.parse.urlsplit(page).scheme == "file":
        page += "index.html"
    with client.open(page, accept=_SIMPLE) as response:
        content_type, body, base = response.content_type, response.read(), response.url
    links = _json_links(body) if "json" in content_type else _html_links(body)
    for filename, href, digest in links:
        if filename == file.filename:
            if digest and digest != file.sha256:
                raise ValueError(f"lists sha256 {digest} for it, which is another file")
            return urllib.parse.urljoin(base, href)
    raise LookupError(f"does not list {file.filename}")


def _json_links(body: bytes) -> list[tuple[str, str, str]]:
    page: dict[str, Any] = json.loads(body)
    try:
        return [(f["filename"], f["url"], f.get("hashes", {}).get("sha256", "")) for f in page["files"]]
    except (KeyError, TypeError, AttributeError):
        raise ValueError("answered with something that is no list of files") from None


class _Anchors(HTMLParser):
    """Collects the targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the `href` of an anchor."""
        self.hrefs += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _html_links(body: bytes) -> list[tuple[str, str, str]]:
    parser = _Anchors()
    parser.feed(body.decode("utf-8", errors="replace"))
    links = []
    for href in parser.hrefs:
        address, fragment = urllib.parse.urldefrag(href)
        filename = urllib.parse.unquote(urllib.parse.urlsplit(address).path.rpartition("/")[2])
        links.append((filename, address, fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""))
    return links


def _find_npm(client: WebClient, registry: str, file: PackageFile) -> str:
    """The tarball's address in a registry; raises as `_find_pypi` does."""
    page = f"{registry.rstrip('/')}/{urllib.parse.quote(file.project, safe='@')}"
    with client.open(page, accept="application/vnd.npm.install-v1+json, application/json;q=0.9") as response:
        page = json.loads(response.read())
    try:
        release = page["versions"].get(file.version)
        if release is not None:
            return str(release["dist"]["tarball"])
    except (KeyError, TypeError, AttributeError):
        raise ValueError("answered with something that is no list of versions") from None
    raise LookupError(f"does not list {file.project} {file.version}")


def _download(client: WebClient, url: str, file: PackageFile, target: Path) -> None:
    """Stream a file to `target` and check its size and digest.

    Raises:
        ConnectionError: the connection broke, three times over.
        ValueError: what came is not the pinned file.
    """
    with target.open("r+b") as sink:
        for attempt in range(1, ATTEMPTS + 1):
            sink.seek(0)
            sink.truncate()
            try:
                digest = _stream(client, url, file, sink)
                break
            except ConnectionError:
                if attempt == ATTEMPTS:
                    raise
        sink.flush()
        os.fsync(sink.fileno())
    if digest != file.sha256:
        raise ValueError(f"sent a file with sha256 {digest}, which is not the pinned one")


def _stream(client: WebClient, url: str, file: PackageFile, sink: IO[bytes]) -> str:
    """Copy an answer's bytes to `sink` and return their digest."""
    digest, size = hashlib.sha256(), 0
    with client.open(url) as response, bar(file.filename, file.size) as progress:
        while size <= file.size and (chunk := response.read(CHUNK)):
            sink.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            progress.advance(len(chunk))
    if size < file.size:
        raise ConnectionError(f"only {size:,} of {file.size:,} bytes came")
    if size > file.size:
        raise ValueError(f"sent more than the {file.size:,} bytes of the pinned file")
    return digest.hexdigest()
