"""The stage `data prepare`: from raw documents to a clean, deduplicated, divided corpus and a report about it.

Read, normalize, divide, filter, group duplicates, hold out, write; the same inputs and configuration give
the same bytes. All texts are held in memory. Knows neither tokens nor models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.errors import DataError
from lmworks.core.generation import Document
from lmworks.core.lineage import Manifest, clock, write_artifact
from lmworks.core.progress import bar, say
from lmworks.data.cleaning.filters import Preset, first_broken, remove_lines, rules_of
from lmworks.data.cleaning.normalize import divide, normalize
from lmworks.data.corpus.report import Findings, render_html
from lmworks.data.corpus.split import hold_out, overlapping
from lmworks.data.deduplication.dedup import DedupConfig, choose, find_groups
from lmworks.data.extraction.sources import Rejection, RowFields, read_documents
from lmworks.data.shingles import Shingles


class PrepareConfig(Config):
    """What to read and how to clean it."""

    inputs: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Fetched sources, folders or files (.txt, .md, .rst, .py, .jsonl, .parquet, .html, .pdf; also .gz)."""
    output: Path
    """Folder of the corpus artifact."""
    preset: Preset = "prose"
    """Filter rules: `prose` for any language, `english`, `code`, or `none`."""
    min_words: Annotated[int | None, Field(ge=1)] = None
    """Fewest words of a document; None takes the preset's."""
    max_characters: Annotated[int, Field(ge=1000)] = 20_000
    """Longer documents are cut into pieces of at most this many characters."""
    text_field: str = "text"
    """Field of .jsonl and .parquet rows that holds the text."""
    license: str = "unspecified"
    """Recorded for documents that state no licence of their own."""
    dedup: DedupConfig = DedupConfig()
    validation_fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.02
    """Share of the documents that is held out."""
    max_overlap: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """A held-out document that shares more of its 13-grams with training text goes to training."""
    max_documents: Annotated[int | None, Field(ge=1)] = None
    """Read at most this many documents, an equal share from each input."""
    max_bytes: Annotated[int | None, Field(ge=1)] = None
    """Read at most about this many bytes of text, an equal share from each input."""
    seed: int = 0
    """Chooses which documents are held out."""


def prepare(config: PrepareConfig) -> Manifest:
    """Clean, deduplicate and split documents.

    Raises:
        DataError: an input cannot be read at all, or no document is left; the message counts what was lost where.
        ArtifactError: a source artifact does not match its manifest.
    """
    started = clock()
    findings = Findings(config.preset, rules_of(config.preset, config.min_words))
    documents = list(_clean(config, findings))
    if not documents:
        raise DataError(
            f"no document is left: {findings.losses()}", "Give text that keeps the rules, or choose another preset"
        )
    texts = [document.text for document in documents]
    say(f"{len(documents):,} documents pass the filters; looking for duplicates …")
    shingles = Shingles(texts)
    groups = find_groups(texts, shingles, config.dedup)
    kept, dropped = choose(groups, texts, config.dedup)
    for number, (stayed, why) in sorted(dropped.items()):
        findings.duplicate(why, documents[number], documents[stayed])
    held_out = hold_out(groups.group_keys, config.validation_fraction, config.seed)
    held_out &= ~_repeating(shingles, held_out, kept, config, findings)
    splits = {
        "train": [documents[n] for n in kept if not held_out[n]],
        "validation": [documents[n] for n in kept if held_out[n]],
    }
    if config.validation_fraction > 0.0 and not all(splits.values()):
        raise DataError(
            f"{len(kept)} documents leave {len(splits['train'])} for training and {len(splits['validation'])} held out",
            "Give more documents, raise max_overlap, or set validation_fraction to 0",
        )
    findings.keep(splits)
    with write_artifact(
        config.output,
        "corpus",
        config=config.to_dict(),
        parents={f"inputs.{number}": path for number, path in enumerate(config.inputs)},
        code_version=code_version(__name__),
        started=started,
    ) as writer:
        for name, chosen in splits.items():
            _write(writer.folder / f"{name}.jsonl", chosen)
        report = findings.to_dict()
        (writer.folder / "report.json").write_text(
            json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (writer.folder / "report.html").write_text(render_html(report), encoding="utf-8")
        writer.metrics = report["counts"]
        writer.notes = {"licenses": report["licenses"]}
    say(f"corpus: {findings.summary()} · {config.output / 'report.html'}")
    assert writer.manifest is not None, "the block above published it"
    return writer.manifest


def _clean(config: PrepareConfig, findings: Findings) -> Iterator[Document]:
    """Normalized documents that keep every rule; what is lost goes into `findings`."""
    rules = rules_of(config.preset, config.min_words)
    keep_layout = config.preset == "code"
    with bar("clean documents") as progress:
        for raw in _read(config, findings):
            progress.advance()
            text, removed = remove_lines(normalize(raw.text, keep_layout=keep_layout), config.preset)
            findings.removed_lines(removed)
            pieces = divide(text, config.max_characters) or [""]
            for number, piece in enumerate(pieces):
                identity = raw.id if len(pieces) == 1 else f"{raw.id}-{number}"
                document = Document(identity, piece, raw.source, raw.license)
                broken = first_broken(piece, rules)
                if broken is None:
                    yield document
                else:
                    findings.filtered(document, *broken)


def _read(config: PrepareConfig, findings: Findings) -> Iterator[Document]:
    """Documents of all inputs, each input up to its share of the limits."""
    fields = RowFields(config.text_field, config.license)
    inputs = len(config.inputs)
    most_documents = -(-config.max_documents // inputs) if config.max_documents else None
    most_bytes = -(-config.max_bytes // inputs) if config.max_bytes else None
    for path in config.inputs:
        count = size = 0
        for item in read_documents(path, fields):
            if isinstance(item, Rejection):
                findings.rejected(item)
                continue
            findings.read(item)
            yield item
            count += 1
            size += len(item.text.encode("utf-8", "surrogatepass"))
            if (most_documents and count >= most_documents) or (most_bytes and size >= most_bytes):
                break


def _repeating(
    shingles: Shingles, held_out: NDArray[np.bool_], kept: list[int], config: PrepareConfig, findings: Findings
) -> NDArray[np.bool_]:
    """Held-out documents that repeat training text and go back to it."""
    moved = np.zeros(len(held_out), dtype=np.bool_)
    if held_out.any() and config.max_overlap < 1.0:
        moved = overlapping(shingles, held_out, config.max_overlap)
        findings.moved_to_train = int(moved[kept].sum())
    return moved


def _write(file: Path, documents: list[Document]) -> None:
    with file.open("w", encoding="utf-8", newline="\n") as sink:
        for document in documents:
            row: dict[str, Any] = {
                "id": document.id, "text": document.text, "source": document.source, "license": document.license
            }  # fmt: skip
            sink.write(json.dumps(row, ensure_ascii=False) + "\n")
