"""Debian packages through apt: the newest version that its indexes offer, verified by the sha256 that they state.

Debian replaces a package with every security update and takes the old one away, so nothing is pinned here: what came
is recorded instead. apt needs no rights for this, and nothing is installed or run. Knows nothing of what packages hold.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote

from lmworks.core.errors import DownloadError, disk_errors
from lmworks.core.lineage import sha256
from lmworks.core.progress import say
from lmworks.data.acquisition.download_cache import cache_folder, sole_writer
from lmworks.data.acquisition.package_index import PackageFile, is_whole


@dataclass(frozen=True)
class DebianPackage:
    """A package by the name that it has in every release of Debian."""

    name: str
    holder: str = ""
    """Where the package holds nothing but depends on the one that does: shell pattern of that one's name."""


@dataclass(frozen=True)
class Obtained:
    """A package that is here."""

    path: Path
    file: PackageFile
    verified: bool
    """False for a file that somebody placed in the cache, which no index was asked about."""


def obtain_debian(package: DebianPackage) -> Obtained:
    """The newest version that apt offers; without apt or network, the newest that is in the cache already.

    Raises:
        DownloadError: there is neither.
        DiskFullError: the cache's device is full.
    """
    try:
        newest = _candidate(package)
    except LookupError as error:
        why = f"{package.name} cannot be looked up: {error}"
        if (earlier := _here(package)) is None:
            raise _missing(package, why) from None
        return earlier
    path = _folder() / newest.filename
    if not is_whole(path, newest):
        try:
            _download(newest, path)
        except ConnectionError as error:
            why = f"apt-get could not fetch {newest.project} {newest.version}: {error}"
            if (earlier := _here(package)) is None:
                raise _missing(package, why) from None
            say(f"{why}; {earlier.file.filename} is used instead.")
            return earlier
    return Obtained(path, newest, verified=True)


def _folder() -> Path:
    return cache_folder() / "packages" / "debian"


def _here(package: DebianPackage) -> Obtained | None:
    """The youngest file of the package that lies in the cache; servers and apt keep the date of its making."""
    found = [file for file in _folder().glob("*.deb") if fnmatchcase(file.name, f"{package.holder or package.name}_*")]
    if not found:
        return None
    path = max(found, key=lambda file: (file.stat().st_mtime, file.name))
    project, version = (unquote(part) for part in path.name.split("_")[:2])
    file = PackageFile("debian", project, version, path.name, path.stat().st_size, sha256(path))
    return Obtained(path, file, verified=False)


def _missing(package: DebianPackage, why: str) -> DownloadError:
    return DownloadError(
        why,
        f"On Debian or Ubuntu run `apt-get update` and try again; elsewhere take {package.holder or package.name}_*.deb"
        f" from https://packages.debian.org/stable/{package.name} and place it in {_folder()}",
    )


def _candidate(package: DebianPackage) -> PackageFile:
    """The version that apt would install.

    Raises:
        LookupError: there is no apt, or its indexes do not list the package.
    """
    fields = _show(package.name)
    if package.holder:
        needed = re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9+.-]+)", fields.get("Depends", ""))
        held_by = next((name for name in needed if fnmatchcase(name, package.holder)), None)
        fields = _show(held_by) if held_by else fields
    name, version, architecture = (fields[key] for key in ("Package", "Version", "Architecture"))
    return PackageFile(
        "debian", name, version, f"{name}_{version.replace(':', '%3a')}_{architecture}.deb", int(fields["Size"]),
        fields["SHA256"],
    )  # fmt: skip


def _show(name: str) -> dict[str, str]:
    """The fields of a package's newest version in apt's indexes."""
    done = _apt("apt-cache", "show", "--no-all-versions", name)
    stanza = done.stdout.partition("\n\n")[0]
    fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
    if done.returncode or not {"Package", "Version", "Architecture", "Size", "SHA256"} <= fields.keys():
        raise LookupError(_complaints(done) or "apt's indexes do not list it")
    return fields


def _download(file: PackageFile, path: Path) -> None:
    """Have apt-get fetch exactly this version into the cache.

    Raises:
        ConnectionError: it could not, or what came is another file.
        DownloadError: the cache cannot be written.
    """
    with sole_writer(path) as partial, disk_errors(path):
        if is_whole(path, file):  # another process had the same wish
            return
        staging = partial.with_suffix(".folder")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            say(f"{file.filename}: {file.size / 1e6:.1f} MB come by apt-get.")
            done = _apt("apt-get", "-q", "download", f"{file.project}={file.version}", cwd=staging)
            came = next(staging.glob("*.deb"), None)
            if done.returncode or came is None:
                raise ConnectionError(_complaints(done) or "it brought nothing")
            if not is_whole(came, file):
                raise ConnectionError(f"what came has not the sha256 {file.sha256} that the index states")
            came.replace(path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _apt(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, cwd=cwd,
            stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except OSError as error:
        raise LookupError(f"{command[0]} cannot be run: {error.strerror}") from None


def _complaints(done: subprocess.CompletedProcess[str]) -> str:
    """The errors of apt in one line, without names and passwords of mirrors."""
    lines = [line.removeprefix("E:").strip() for line in done.stderr.splitlines() if line.startswith("E:")]
    return re.sub(r"//[^/\s]*@", "//", "; ".join(lines))
