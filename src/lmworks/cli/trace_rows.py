"""From a row of a training batch back to its documents: their ids, sources, licences and texts' beginnings.

A token store holds the documents of a corpus in the order of its lines, so that a document's number is its line; what
tokens were converted from tells the numbers before. Knows how a run packs rows only through the run's own code.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmworks.core.errors import ArtifactError
from lmworks.core.lineage import MANIFEST, content_hash, load_manifest
from lmworks.core.trace import Ancestor, trace
from lmworks.data.privacy.history import CONVERTED, came_from

if TYPE_CHECKING:
    from lmworks.train.pretrain import PretrainConfig

SHOWN_CHARACTERS = 160


@dataclass(frozen=True)
class TracedDocument:
    """One document that a row holds a part of."""

    row: int
    tokens: str
    """The tokens artifact."""
    number: int
    """Of the document in it, from 0."""
    id: str
    source: str
    license: str
    text: str
    """Its beginning."""

    def to_dict(self) -> dict[str, str | int]:
        """As JSON holds it."""
        return asdict(self)


def config_of(run: Path) -> PretrainConfig:
    """The configuration of a pretraining run, finished or not.

    Raises:
        ArtifactError: there is no such run.
    """
    from lmworks.train.pretrain import PretrainConfig, run_folder_of
    from lmworks.train.run_log import SETTINGS_FILE

    for folder in (run, run_folder_of(run)):
        if (settings := folder / SETTINGS_FILE).is_file():
            return PretrainConfig.parse(json.loads(settings.read_text(encoding="utf-8")))
    if (run / MANIFEST).is_file():
        made = load_manifest(run)
        if {"tokens", "tokenizer", "train"} <= made.config.keys():
            return PretrainConfig.parse(made.config)
    raise ArtifactError(f"{run} is no pretraining run", "Give the output of `lmworks pretrain`")


def require_same_tokens(run: Path, config: PretrainConfig) -> None:
    """Refuse tokens that are others now than the run read: its rows would name other documents.

    Raises:
        ArtifactError: they have changed since, as by an erasure.
    """
    from lmworks.train.nested import leaves
    from lmworks.train.pretrain import parents_of, run_folder_of

    read = {parent.content_hash for parent in load_manifest(run).parents} if (run / MANIFEST).is_file() else set()
    for folder in (run, run_folder_of(run)):
        for file in folder.glob(f"*/{MANIFEST}"):
            if (checkpoint := load_manifest(file.parent)).kind == "checkpoint":
                read |= {str(value) for value in leaves(checkpoint.config, ".").values()}
    for role, path in parents_of(config).items():
        if role.startswith("tokens") and read and content_hash(path) not in read:
            raise ArtifactError(
                f"{path} has changed since {run} read it, so rows would name other documents", "Bring it back"
            )


def rows_of_step(run: Path, config: PretrainConfig, step: int) -> range:
    """The rows that a step learned from.

    Args:
        run: folder of the run.
        config: of the run.
        step: from 1, as in metrics.jsonl.

    Raises:
        ArtifactError: the run has no such step, or has left rows out, so that steps and rows do not follow each other.
    """
    from lmworks.train.events import read_events
    from lmworks.train.pretrain import run_folder_of

    train = config.train
    if not 1 <= step <= train.steps:
        raise ArtifactError(f"step {step} is none of the {train.steps} steps of {run}", "Count from 1")
    for folder in (run, run_folder_of(run)):
        events = folder / "events.jsonl"
        if events.exists() and any(event.get("action") == "rewind" for event in read_events(events)):
            raise ArtifactError(
                f"{run} went back and left rows out, so a step's number does not tell its rows",
                f"`lmworks replay {run} --step {step}` names them; then give --row",
            )
    first = train.tokens_before(step - 1) // train.sequence_length
    return range(first, first + train.size_at(step - 1).batch_tokens // train.sequence_length)


def documents_of_rows(config: PretrainConfig, rows: Iterable[int]) -> list[TracedDocument]:
    """The documents of rows, in their order.

    Raises:
        ArtifactError: a corpus is gone or has changed since its tokens were made.
    """
    from lmworks.data.tokens.mixing import MixedRows
    from lmworks.data.tokens.packing import PackedRows
    from lmworks.objectives.arrange import ArrangedRows
    from lmworks.train.pretrain import assemble, run_folder_of

    packed = assemble(config, run_folder_of(config.output)).trainer.rows
    packed = packed.source if isinstance(packed, ArrangedRows) else packed
    assert isinstance(packed, PackedRows | MixedRows), "pretraining reads nothing else"
    found = [(row, *_named(config, name)) for row in rows for name in packed.documents(row)]
    ancestry = {tokens: trace(tokens) for tokens in {tokens for _, tokens, _ in found}}
    lines = [line_of(ancestry[tokens], "train", number) for _, tokens, number in found]
    texts = {file: _lines(file, {number for other, number in lines if other == file}) for file, _ in lines}
    traced = []
    for (row, tokens, number), (file, line) in zip(found, lines, strict=True):
        read = json.loads(texts[file][line])
        text = read["text"] if len(read["text"]) <= SHOWN_CHARACTERS else read["text"][:SHOWN_CHARACTERS] + "…"
        traced.append(TracedDocument(row, str(tokens), number, read["id"], read["source"], read["license"], text))
    return traced


def _named(config: PretrainConfig, name: str) -> tuple[Path, int]:
    """The tokens artifact and the number that a packed row calls a document by."""
    source, _, number = name.rpartition(" ")
    return (config.tokens if isinstance(config.tokens, Path) else config.tokens.sources[source].tokens), int(number)


def line_of(tokens: Ancestor, split: str, number: int) -> tuple[Path, int]:
    """The file of a corpus, and the line in it, that a document of tokens was made from.

    Raises:
        ArtifactError: what the tokens were made from is gone, has changed since, or was no corpus.
    """
    made = tokens.manifest
    converted = made.notes.get(CONVERTED, {}) if made is not None else {}
    source, number = came_from(converted[split], number) if split in converted else (None, number)
    role = "corpus" if source is None else f"{split}.{source}"
    before = next((ancestor for ancestor in tokens.ancestors if ancestor.parent.role == role), None)
    if before is None:
        raise ArtifactError(
            f"{tokens.where} was made from no corpus", "Give a run on tokens of `lmworks data tokenize`"
        )
    if before.state != "intact":
        raise ArtifactError(f"{before.where}, which {tokens.where} was made from, is {before.state}", "Bring it back")
    if source is None:
        return before.where / f"{split}.jsonl", number
    if before.where.is_file():
        return line_of(before, before.where.name, number)
    (artifact,) = before.ancestors or (before,)  # a split's folder is a part of one, or stands alone
    return line_of(artifact, before.where.name, number)


def _lines(file: Path, numbers: Collection[int]) -> dict[int, bytes]:
    """Some lines of a file, by number from 0."""
    found = {}
    with file.open("rb") as source:
        for number, line in enumerate(source):
            if number in numbers:
                found[number] = line
                if len(found) == len(numbers):
                    break
    return found
