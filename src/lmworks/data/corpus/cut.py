"""Repeated lines, paragraphs and runs are cut out of the documents that stay. Knows neither rules nor splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lmworks.data.corpus.decide import LEFT_OUT, Decisions
from lmworks.data.corpus.index import Index
from lmworks.data.deduplication.cuts import repeated_parts
from lmworks.data.deduplication.fingerprints import DedupConfig
from lmworks.data.deduplication.substrings import Spans, without


@dataclass(frozen=True)
class Cuts:
    """Parts of documents that are not written."""

    spans: Spans
    """By the number of the document among all."""
    characters: int = 0
    """That the documents lose, white space that a cut leaves at an end included."""

    def __post_init__(self) -> None:
        texts = self.spans.texts
        assert (texts[1:] >= texts[:-1]).all(), "documents are found by bisection"

    def __contains__(self, number: int) -> bool:
        return self._place(number).stop > self._place(number).start

    def of(self, number: int, text: str) -> str:
        """What is left of a document's text."""
        place = self._place(number)
        spans = Spans(np.zeros_like(self.spans.texts[place]), self.spans.begins[place], self.spans.ends[place])
        return without([text], spans)[0].strip()

    def _place(self, number: int) -> slice:
        first, last = np.searchsorted(self.spans.texts, [number, number + 1])
        return slice(int(first), int(last))

    def documents(self) -> NDArray[np.int64]:
        """Numbers of the documents that lose something."""
        return np.unique(self.spans.texts)

    def counts(self) -> dict[str, int]:
        """Documents that lose something, and how many characters."""
        return {"documents_cut": len(self.documents()), "characters_cut": self.characters}


def cut_repetitions(index: Index, decisions: Decisions, dedup: DedupConfig) -> tuple[Index, Decisions, Cuts]:
    """Find what repeats among the documents that stay.

    Which copy is the first goes by the order of the inputs where `keep` is `first`, else by the documents' content.

    Returns:
        The index with the sizes that are left, the decisions without documents of which nothing is left, the cuts.
    """
    kept = np.flatnonzero(decisions.split != LEFT_OUT)
    read = kept if dedup.keep == "first" else index.by_content(kept)
    found = repeated_parts((document.text for document in index.documents(read.tolist())), dedup)
    order = np.argsort(read[found.texts], kind="stable")
    cuts = Cuts(Spans(read[found.texts][order], found.begins[order], found.ends[order]))
    records, split = index.records.copy(), decisions.split.copy()
    numbers = cuts.documents().tolist()
    for number, document in zip(numbers, index.documents(numbers), strict=True):
        left = cuts.of(number, document.text)
        records[number]["characters"], records[number]["bytes"] = len(left), len(left.encode())
        if not left:
            split[number] = LEFT_OUT
    lost = int((index.records["characters"] - records["characters"]).sum())
    return replace(index, records=records), replace(decisions, split=split), replace(cuts, characters=lost)


def texts_of(index: Index, numbers: Sequence[int], cuts: Cuts | None) -> Iterator[str]:
    """Texts as they are written."""
    for number, document in zip(numbers, index.documents(numbers), strict=True):
        yield document.text if cuts is None else cuts.of(number, document.text)
