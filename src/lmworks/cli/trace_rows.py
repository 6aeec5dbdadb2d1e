"""From a row of a training batch back to its documents: their ids, sources, licences and texts' beginnings.

A token store holds the documents of a corpus in the order of its lines, so that a document's number is its line. Knows
how a run packs rows only through the run's own code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmworks.core.errors import ArtifactError
from lmworks.core.lineage import MANIFEST, load_manifest
from lmworks.core.trace import trace

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
    """Of the document in it, and of its line in the corpus, from 0."""
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
    lines = {
        tokens: _lines(_corpus_of(tokens), [number for _, other, number in found if other == tokens])
        for tokens in {tokens for _, tokens, _ in found}
    }
    traced = []
    for row, tokens, number in found:
        read = json.loads(lines[tokens][number])
        text = read["text"] if len(read["text"]) <= SHOWN_CHARACTERS else read["text"][:SHOWN_CHARACTERS] + "…"
        traced.append(TracedDocument(row, str(tokens), number, read["id"], read["source"], read["license"], text))
    return traced


def _named(config: PretrainConfig, name: str) -> tuple[Path, int]:
    """The tokens artifact and the number that a packed row calls a document by."""
    source, _, number = name.rpartition(" ")
    return (config.tokens if isinstance(config.tokens, Path) else config.tokens.sources[source].tokens), int(number)


def _corpus_of(tokens: Path) -> Path:
    """The corpus that tokens were made from, as it was then."""
    for ancestor in trace(tokens).ancestors:
        if ancestor.parent.role == "corpus":
            if ancestor.state != "intact":
                raise ArtifactError(f"the corpus {ancestor.where} of {tokens} is {ancestor.state}", "Bring it back")
            return ancestor.where
    raise ArtifactError(f"{tokens} was made from no corpus", "Give a run on tokens of `lmworks data tokenize`")


def _lines(corpus: Path, numbers: Sequence[int]) -> dict[int, bytes]:
    """Some lines of the training split, by number from 0."""
    wanted, found = set(numbers), {}
    with (corpus / "train.jsonl").open("rb") as source:
        for number, line in enumerate(source):
            if number in wanted:
                found[number] = line
                if len(found) == len(wanted):
                    break
    return found
