"""The artifact contract: a folder in a standard format plus `lineage.json`, written whole or not at all.

A stage writes into a hidden sibling folder, every file is fsynced and hashed, the manifest is written
last, and one rename publishes it. A crash leaves the old artifact or the new one, never a half.
What other programs take as one file, such as `x.gguf`, is an artifact by `x.gguf.lineage.json` beside it.
Knows nothing of what the files mean.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

from lmworks.core.errors import ArtifactError, ArtifactVersionError, disk_errors

MANIFEST = "lineage.json"
FORMAT_VERSION = 1
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EROFS}
"""Why a folder cannot be made where somebody wants it, however much room there is."""
WATTS_PER_CORE = 10.0
"""Assumed draw of one busy server core, for the energy estimate where no meter is readable."""


@dataclass(frozen=True)
class Parent:
    """One input of an artifact."""

    path: str
    """Relative to the child's folder when both live in one tree, else absolute."""
    kind: str
    content_hash: str
    role: str = ""
    """The configuration field that named it, e.g. `tokenizer`."""


@dataclass(frozen=True)
class Manifest:
    """What `lineage.json` holds. `path` is where the artifact was found or published."""

    kind: str
    content_hash: str
    files: dict[str, str]
    """Relative file name to sha256."""
    parents: tuple[Parent, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    code_version: str = ""
    created: str = ""
    duration_seconds: float = 0.0
    cpu_seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    """Provenance: sources, licences, upstream hashes."""
    path: Path = Path()

    @property
    def energy_joules(self) -> float:
        """Estimated energy: processor seconds times an assumed draw per core."""
        return self.cpu_seconds * WATTS_PER_CORE

    def to_json(self) -> str:
        """The manifest's text."""
        values = {k: v for k, v in self.__dict__.items() if k != "path"}
        values["parents"] = [p.__dict__ for p in self.parents]
        return json.dumps({"format_version": FORMAT_VERSION, **values}, indent=2, ensure_ascii=False) + "\n"


class ArtifactWriter:
    """Collects one artifact; `folder` is the hidden folder to write files into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}
        self.hashes: dict[str, str] = {}
        """sha256 of files, by their relative names, that whoever wrote them has flushed to the device and hashed."""
        self.manifest: Manifest | None = None
        """Set once published."""


@contextmanager
def write_artifact(
    path: Path,
    kind: str,
    *,
    config: Mapping[str, Any],
    parents: Mapping[str, Path] | None = None,
    code_version: str = "",
    started: tuple[float, float] | None = None,
    recorded: Sequence[Parent] = (),
    one_file: bool = False,
) -> Iterator[ArtifactWriter]:
    """Write an artifact atomically.

    Args:
        path: where the finished folder appears; an older artifact there is replaced.
        kind: `corpus`, `tokenizer`, `model`, `checkpoint`, `report`, …
        config: the JSON-able configuration of the stage.
        parents: role to folder of each input; recorded with their content hashes.
        code_version: hash of the code that made it.
        started: `clock()` taken when the work began, when that was before this block.
        recorded: inputs described before, such as those of the older version that this one replaces.
        one_file: `path` is a file; the block writes it, by its name, and what belongs to it, such as an index.

    Raises:
        DiskFullError: the device is full; nothing is left behind.
        ArtifactError: `path` exists and is not an artifact of ours, or cannot be made.
    """
    path = Path(path)
    recover(path)
    require_replaceable(path)
    begun = started or clock()
    inputs = (*recorded, *(parent_of(p, path.parent, role) for role, p in (parents or {}).items()))
    staging = path.parent / f".{path.name}.tmp-{os.getpid()}"
    with disk_errors(path):
        shutil.rmtree(staging, ignore_errors=True)
        _make(staging, path)
        writer = ArtifactWriter(staging)
        try:
            yield writer
            wall, cpu = clock()
            files = hash_files(staging, sync=True, known=writer.hashes)
            manifest = Manifest(
                kind, tree_hash(files), files, inputs, dict(config), code_version,
                time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), wall - begun[0], cpu - begun[1],
                writer.metrics, writer.notes, path,
            )  # fmt: skip
            write_synced(staging / (f"{path.name}.{MANIFEST}" if one_file else MANIFEST), manifest.to_json())
            sync_folder(staging)
            if one_file:
                staging.rename(ready := path.with_name(f".{path.name}.ready-{os.getpid()}"))
                _place(ready, path)
            else:
                _publish(staging, path)
            writer.manifest = manifest
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def require_replaceable(path: Path) -> None:
    """Refuse an output that is something else than an older artifact; long work asks before it begins.

    Raises:
        ArtifactError: `path` exists and is not an artifact of ours.
    """
    if path.exists() and not manifest_file(path).exists() and (path.is_file() or any(path.iterdir())):
        raise ArtifactError(
            f"{path} exists and is not an artifact (it has no {MANIFEST})", "Choose another output path"
        )


def clock() -> tuple[float, float]:
    """Wall and processor seconds (this process and its finished children), to pass as `started`."""
    own, children = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return time.time(), own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def manifest_file(path: Path) -> Path:
    """Where the manifest of an artifact lies: in its folder, or beside it if it is one file."""
    return path.with_name(f"{path.name}.{MANIFEST}") if path.is_file() else path / MANIFEST


def load_manifest(path: Path | str) -> Manifest:
    """Read an artifact's manifest without checking its files.

    Raises:
        ArtifactError: there is no artifact at `path`, or its manifest is damaged.
        ArtifactVersionError: another version of this program wrote it.
    """
    path = Path(path)
    recover(path)
    file = manifest_file(path)
    if not file.is_file():
        raise ArtifactError(f"{path} is not an artifact: it has no {MANIFEST}", "Run the stage that makes it first")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        version = values.pop("format_version")
        if version != FORMAT_VERSION:
            raise ArtifactVersionError(
                f"{file} has format version {version}, this program reads {FORMAT_VERSION}", "Make it anew"
            )
        values["parents"] = tuple(Parent(**p) for p in values["parents"])
        return Manifest(**values, path=path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{file} is damaged: {error}", "Make the artifact anew") from None


def verify(path: Path | str) -> Manifest:
    """Load a manifest and check every file's hash.

    Raises:
        ArtifactError: naming the missing, extra or changed files.
    """
    manifest, path = load_manifest(path), Path(path)
    if path.is_file():
        found = {name: sha256(file) for name in manifest.files if (file := path.with_name(name)).is_file()}
    else:
        found = hash_files(path)
    missing, changed = (
        sorted(set(manifest.files) - set(found)),
        sorted(n for n, h in manifest.files.items() if n in found and found[n] != h),
    )
    if missing or changed:
        raise ArtifactError(
            f"{path} does not match its {MANIFEST}: missing {missing}, changed {changed}",
            "Restore the files or make the artifact anew",
        )
    return manifest


def parent_of(path: Path | str, base: Path, role: str = "") -> Parent:
    """Describe an input: an artifact by its manifest, anything else by hashing its bytes."""
    path = Path(path)
    shown = os.path.relpath(path.resolve(), base.resolve())
    if shown.count("..") > 3:
        shown = str(path.resolve())
    if manifest_file(path).exists():
        manifest = load_manifest(path)
        return Parent(shown, manifest.kind, manifest.content_hash, role)
    return Parent(shown, "file" if path.is_file() else "folder", content_hash(path), role)


def content_hash(path: Path | str) -> str:
    """The hash of an artifact, a plain folder or a file; `"absent"` when nothing is there."""
    path = Path(path)
    if manifest_file(path).exists():
        return load_manifest(path).content_hash
    if path.is_file():
        return sha256(path)
    return tree_hash(hash_files(path)) if path.is_dir() else "absent"


def hash_files(folder: Path, *, sync: bool = False, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """sha256 of every file below `folder` except the manifest; with `sync`, flushed to the device too.

    Those of the `known` are neither read nor flushed again.
    """
    hashes = dict(known or {})
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST):
        if (name := file.relative_to(folder).as_posix()) in hashes:
            continue
        if sync:
            sync_file(file)
        try:
            hashes[name] = sha256(file)
        except OSError:
            if sync:
                raise
            hashes[name] = "unreadable"  # in a user's folder: it was not used either
    return dict(sorted(hashes.items()))


def tree_hash(files: Mapping[str, str]) -> str:
    """One hash of a set of named file hashes."""
    lines = "".join(f"{n}\0{h}\n" for n, h in sorted(files.items()))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()  # names of files may be any bytes


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_synced(file: Path, text: str) -> None:
    """Write a small text file and flush it to the device."""
    with file.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def sync_file(file: Path) -> None:
    """Flush a file that was written to the device."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the device, so that a rename inside it survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make(staging: Path, path: Path) -> None:
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise ArtifactError(f"{path} cannot be written: {error.strerror}", "Choose another output path") from error


def _publish(staging: Path, path: Path) -> None:
    """Rename `staging` to `path`; the artifact it replaces is set aside first and removed last."""
    old = path.parent / f".{path.name}.old-{os.getpid()}"
    if path.exists():
        path.rename(old)
    staging.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _place(ready: Path, path: Path) -> None:
    """Move the finished files of an artifact of one file to where they belong, that file last."""
    for file in sorted(ready.iterdir(), key=lambda file: (file.name == path.name, file.name)):
        file.replace(path.with_name(file.name))
    sync_folder(path.parent)
    ready.rmdir()


def recover(path: Path) -> None:
    """Finish what a killed writer left: restore an artifact set aside, drop stale staging folders.

    Folders of a living process are its own business and are left alone.
    """
    name = escape(path.name)
    for ready in path.parent.glob(f".{name}.ready-*"):
        if not _alive(ready.name.rpartition("-")[2]):
            _place(ready, path)
    for old in path.parent.glob(f".{name}.old-*"):
        if not _alive(old.name.rpartition("-")[2]):
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.rename(path)
    for stale in path.parent.glob(f".{name}.tmp-*"):
        if not _alive(stale.name.rpartition("-")[2]):
            shutil.rmtree(stale, ignore_errors=True)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
