"""Removes a document from sources, corpora and tokens: each becomes a new version, whole or not at all.

A new version remembers which rows of which older version are gone, so that an erasure that was interrupted can be run
again, and so that models trained on the older version stay known. Models are not changed: they are to be retrained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmworks.core.errors import ArtifactError
from lmworks.core.lineage import ArtifactWriter, Manifest, Parent, load_manifest, parent_of, verify, write_artifact
from lmworks.data.corpus.report_page import render_html
from lmworks.data.privacy.document_rows import shown_with
from lmworks.data.privacy.exposure import TOKENS, Exposure, Holding
from lmworks.data.privacy.history import CONVERTED, ERASED, Rows, after_removal, note
from lmworks.data.privacy.replacements import LABEL
from lmworks.data.privacy.vault import read_vault, vault_path, write_vault
from lmworks.data.rows.conversations import FILE
from lmworks.data.tokens.token_files import documents, write_documents
from lmworks.data.tokens.token_store import TokenStore, TokenStoreWriter
from lmworks.data.tokens.tokenize import figures


def erase(exposure: Exposure) -> list[Manifest]:
    """Remove the document wherever it can be removed.

    Returns:
        The manifests of the new versions.

    Raises:
        ArtifactError: an artifact does not match its manifest; those before it are done, run again once it is repaired.
        DiskFullError: likewise.
    """
    made = []
    for holding in exposure.holdings:
        old = verify(holding.manifest.path)
        if old.kind != TOKENS:
            _remove_rows(exposure.document, holding)
        elif old.path.is_file():
            _remove_from_file(holding)
        else:
            _remove_tokens(holding)
        made.append(load_manifest(old.path))
    return made


def _remove_rows(document: str, holding: Holding) -> None:
    """An artifact of rows without the document, and with a report that no longer shows it."""
    old = holding.manifest
    with _new_version(holding, old.parents) as writer:
        for name in old.files:
            target = writer.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            rows = holding.places.get(name.removesuffix(".jsonl")) if name.endswith(".jsonl") else None
            if rows is None:
                shutil.copyfile(old.path / name, target)
                continue
            with (old.path / name).open("rb") as source, target.open("wb") as sink:
                sink.writelines(line for number, line in enumerate(source) if number not in rows)
        for split, rows in holding.places.items():
            for figure, less in (("documents", len(rows)), ("bytes", sum(rows.values()))):
                if f"{split}_{figure}" in writer.metrics:
                    writer.metrics[f"{split}_{figure}"] -= less
        if old.kind == "conversations":
            writer.metrics["rows"] -= len(holding.places.get(Path(FILE).stem, ()))
        _clear_report(document, writer)
        _prune_vault(vault_path(old.path), writer.folder)


def _remove_tokens(holding: Holding) -> None:
    """A token store without the rows."""
    old = holding.manifest
    splits = sorted({name.partition("/")[0] for name in old.files if "/" in name})
    with _new_version(holding, _parents(holding)) as writer:
        for split in splits:
            store, rows = TokenStore(old.path / split), holding.places.get(split, {})
            _fit(rows, len(store), old.path / split)
            with TokenStoreWriter(writer.folder / split, store.vocab_size) as kept:
                kept.add((store[number].tolist(), 0) for number in range(len(store)) if number not in rows)
                kept.num_bytes = max(store.num_bytes - sum(rows.values()), 0)
            writer.metrics.update(figures(split, kept))


def _remove_from_file(holding: Holding) -> None:
    """A `.ds` or `.bin` file without the rows."""
    old = holding.manifest
    (rows,) = holding.places.values()
    _fit(rows, old.metrics["documents"], old.path)
    end_token, vocab_size = old.config["end_token"], old.config["vocab_size"]
    given = enumerate(documents([old.path], end_token, vocab_size))
    kept = [ids for number, ids in given if number not in rows]
    with _new_version(holding, _parents(holding), one_file=True) as writer:
        write_documents(kept, writer.folder / old.path.name, vocab_size)
        writer.metrics |= {"documents": len(kept), "tokens": sum(map(len, kept))}


def _fit(rows: Rows, documents: int, path: Path) -> None:
    if rows and max(rows) >= documents:
        raise ArtifactError(f"{path} has {documents} documents, what it was made from had more", "Make it anew")


def _parents(holding: Holding) -> tuple[Parent, ...]:
    """Of tokens: sources that changed are named as they are now."""
    old = holding.manifest
    parents = []
    for parent in old.parents:
        if parent.role in holding.sources:
            source, places = holding.sources[parent.role]
            part = source.path
            if parent.role != "corpus" and part.is_dir():
                part /= next(iter(places))  # a conversion reads one split
            parent = parent_of(part, old.path.parent, parent.role)
        parents.append(parent)
    return tuple(parents)


def _converted(holding: Holding) -> dict[str, Any]:
    """What a conversion says of its sources, which have lost rows."""
    converted = dict(holding.manifest.notes[CONVERTED])
    for split in converted:
        gone: dict[int, Rows] = {}
        for role, (_, places) in holding.sources.items():
            of, _, number = role.rpartition(".")
            if of == split:
                (gone[int(number)],) = places.values()
        converted[split] = after_removal(converted[split], gone)
    return converted


@contextmanager
def _new_version(holding: Holding, parents: Sequence[Parent], *, one_file: bool = False) -> Iterator[ArtifactWriter]:
    """Write what replaces an artifact; it keeps the history of the old one and adds the erasure."""
    old = holding.manifest
    with write_artifact(
        old.path, old.kind, config=old.config, code_version=old.code_version, recorded=parents, one_file=one_file
    ) as writer:
        erased = note(old, holding.places, holding.digests)
        writer.metrics = dict(old.metrics)
        writer.notes = {**old.notes, ERASED: [*old.notes.get(ERASED, []), erased]}
        if CONVERTED in old.notes:
            writer.notes[CONVERTED] = _converted(holding)
        yield writer


def _clear_report(document: str, writer: ArtifactWriter) -> None:
    """Take samples of the document out of a corpus' report."""
    file = writer.folder / "report.json"
    if not file.is_file():
        return
    report = _without(document, json.loads(file.read_text(encoding="utf-8")))
    if "counts" in report:
        report["counts"] |= {key: writer.metrics[key] for key in report["counts"] if key in writer.metrics}
    file.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if (writer.folder / "report.html").is_file():
        (writer.folder / "report.html").write_text(render_html(report), encoding="utf-8")


def _without(document: str, value: Any) -> Any:
    """The value without the innermost lists' elements that show the document, such as a pair of duplicates."""
    if isinstance(value, dict):
        return {key: _without(document, inner) for key, inner in value.items()}
    if not isinstance(value, list):
        return value
    return [inner for inner in (_without(document, inner) for inner in value) if shown_with(document, inner) is None]


def _prune_vault(vault: Path, corpus: Path) -> None:
    """Forget the values of labels that no row holds any more."""
    if not vault.is_file():
        return
    used: set[str] = set()
    for file in corpus.glob("*.jsonl"):
        with file.open(encoding="utf-8") as rows:
            used |= {match.group() for row in rows for match in LABEL.finditer(row)}
    write_vault(vault, {label: sealed for label, sealed in read_vault(vault).items() if label in used})
