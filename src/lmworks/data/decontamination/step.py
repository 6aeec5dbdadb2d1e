"""The step that takes evaluation items out of a corpus, and its part of the report. Knows no reader and no runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from lmworks.core.config import Config
from lmworks.core.generation import Document
from lmworks.core.progress import say
from lmworks.data.decontamination.evaluation_sets import EvaluationSetConfig, read_evaluation_set
from lmworks.data.decontamination.matching import NGRAM, EvaluationIndex, Match
from lmworks.data.steps import Dropped, Step, Tally

SHOWN_CHARACTERS = 300
SHOWN_DOCUMENTS = 3
"""Of each item, in the report; all are counted."""


class DecontaminateConfig(Config):
    """Which evaluation sets must not be trained on."""

    sets: Annotated[tuple[EvaluationSetConfig, ...], Field(min_length=1)]
    """Files or folders of evaluation items; each a path, or a mapping with its fields."""
    ngram: Annotated[int, Field(ge=2, le=50)] = NGRAM
    """A document that shares so many words in a row with an item is contaminated; 1.7 CJK characters are a word."""
    overlap: Annotated[float | None, Field(gt=0.0, le=1.0)] = 0.3
    """So is one that holds, in one place, this share of an item's runs of three words; null leaves that out."""
    action: Literal["drop", "cut"] = "drop"
    """Drop a contaminated document, or cut what matched and `margin` characters around it."""
    margin: Annotated[int, Field(ge=0)] = 200
    """Characters that are cut on each side; what is left in pieces shorter than this goes too."""
    max_pieces: Annotated[int, Field(ge=1)] = 10
    """A document that cutting would leave in more pieces is dropped."""


class DecontaminateStep:
    """Drop or cut documents that hold evaluation items.

    Args:
        config: what to do about a match.
        index: of the items.
    """

    def __init__(self, config: DecontaminateConfig, index: EvaluationIndex) -> None:
        self.config, self.index = config, index

    def __call__(self, document: Document, tally: Tally) -> Document | Dropped:
        """See `Step`."""
        matches = self.index.find(document.text)
        if not matches:
            return document
        for match in matches:
            _report(match, document, tally)
        if self.config.action == "drop":
            return Dropped("decontaminate/matched", float(len(matches)))
        pieces = remaining(document.text, [span for match in matches for span in match.spans], self.config.margin)
        if not 1 <= len(pieces) <= self.config.max_pieces:
            return Dropped("decontaminate/cut_up", float(len(pieces)))
        return replace(document, text="\n\n".join(pieces))


def remaining(text: str, spans: Sequence[tuple[int, int]], margin: int) -> list[str]:
    """What is left of a text without the spans and `margin` characters around each, but for shorter pieces.

    Appendix C of GPT-3 (arXiv:2005.14165) with its 200 characters.
    """
    pieces, at = [], 0
    for start, end in [*sorted(spans), (len(text) + margin, 0)]:
        piece = text[at : max(start - margin, at)].strip()
        if len(piece) >= max(margin, 1):
            pieces.append(piece)
        at = max(at, end + margin)
    return pieces


def decontamination_steps(config: DecontaminateConfig | None) -> tuple[Step, ...]:
    """The step of a configuration, or none; says how many items are too short to be looked for.

    Raises:
        DataError: an evaluation set cannot be read.
    """
    if config is None:
        return ()
    items = [item for given in config.sets for item in read_evaluation_set(given)]
    index = EvaluationIndex(items, config.ngram, config.overlap)
    if short := int((~index.testable).sum()):
        say(f"{short:,} of {len(items):,} evaluation items are too short to be told from chance and not looked for")
    return (DecontaminateStep(config, index),)


def _report(match: Match, document: Document, tally: Tally) -> None:
    key = match.item.key
    tally.count("contamination", key)
    start, end = match.longest
    found = {
        "item": key, "document": document.id, "source": document.source, "how": match.how, "share": match.share,
        "text": document.text[start : min(end, start + SHOWN_CHARACTERS)],
    }  # fmt: skip
    tally.sample("contamination", key, document.id, found, SHOWN_DOCUMENTS)


def contamination_report(tally: Tally) -> list[dict[str, Any]]:
    """For each item that was found: in how many documents, and some of them with the text that matched."""
    counts = tally.counts("contamination")
    return [
        {"item": key, "documents": counts[key], "found": tally.samples("contamination", key)} for key in sorted(counts)
    ]
