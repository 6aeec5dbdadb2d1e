"""Removes a document from sources, corpora and token stores: each becomes a new version, whole or not at all.

A new version remembers which rows of which older version are gone, so that an erasure that was interrupted can be run
again, and so that models trained on the older version stay known. Models are not changed: they are to be retrained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmworks.core.errors import ArtifactError
from lmworks.core.lineage import ArtifactWriter, Manifest, Parent, load_manifest, parent_of, verify, write_artifact
from lmworks.data.corpus.report import render_html
from lmworks.data.privacy.exposure import ERASED, TOKENS, Exposure, Holding, belongs, note
from lmworks.data.privacy.replacements import LABEL
from lmworks.data.privacy.vault import read_vault, vault_path, write_vault
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
        verify(holding.manifest.path)
        tokens = holding.manifest.kind == TOKENS
        made.append(_remove_tokens(holding) if tokens else _remove_rows(exposure.document, holding))
    return made


def _remove_rows(document: str, holding: Holding) -> Manifest:
    """A source or corpus without the document, and with a report that no longer shows it."""
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
        _clear_report(document, writer)
    _prune_vault(old.path)
    return load_manifest(old.path)


def _remove_tokens(holding: Holding) -> Manifest:
    """A token store without the rows."""
    old, corpus = holding.manifest, holding.corpus
    assert corpus is not None, "tokens are found through their corpus"
    parents = tuple(
        parent_of(corpus.path, old.path.parent, parent.role) if parent.role == "corpus" else parent
        for parent in old.parents
    )
    splits = sorted({name.partition("/")[0] for name in old.files if "/" in name})
    with _new_version(holding, parents) as writer:
        for split in splits:
            store, rows = TokenStore(old.path / split), holding.places.get(split, {})
            if rows and max(rows) >= len(store):
                raise ArtifactError(
                    f"{old.path} has {len(store)} documents in {split}, its corpus had more", "Tokenize the corpus anew"
                )
            with TokenStoreWriter(writer.folder / split, store.vocab_size) as kept:
                kept.add((store[number].tolist(), 0) for number in range(len(store)) if number not in rows)
                kept.num_bytes = store.num_bytes - sum(rows.values())
            writer.metrics.update(figures(split, kept))
    return load_manifest(old.path)


@contextmanager
def _new_version(holding: Holding, parents: Sequence[Parent]) -> Iterator[ArtifactWriter]:
    """Write what replaces an artifact; it keeps the history of the old one and adds the erasure."""
    old = holding.manifest
    with write_artifact(
        old.path, old.kind, config=old.config, code_version=old.code_version, recorded=parents
    ) as writer:
        writer.metrics = dict(old.metrics)
        writer.notes = {**old.notes, ERASED: [*old.notes.get(ERASED, []), note(holding)]}
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
    """The value without list elements that show the document, themselves or in a part, such as a pair of duplicates."""
    if isinstance(value, list):
        return [_without(document, inner) for inner in value if not _shows(document, inner)]
    if isinstance(value, Mapping):
        return {key: _without(document, inner) for key, inner in value.items()}
    return value


def _shows(document: str, value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    named = value.get("id", value.get("document"))
    return belongs(document, named) or any(_shows(document, inner) for inner in value.values())


def _prune_vault(corpus: Path) -> None:
    """Forget the values of labels that no row holds any more."""
    vault = vault_path(corpus)
    if not vault.is_file():
        return
    used: set[str] = set()
    for file in corpus.glob("*.jsonl"):
        with file.open(encoding="utf-8") as rows:
            used |= {match.group() for row in rows for match in LABEL.finditer(row)}
    write_vault(vault, {label: sealed for label, sealed in read_vault(vault).items() if label in used})
