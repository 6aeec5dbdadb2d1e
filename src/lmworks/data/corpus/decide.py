"""What becomes of every cleaned document: a duplicate of another, training text, or held out.

Decided from the index alone, but for the texts that are held out. Knows no rule of cleaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmworks.core.errors import DataError
from lmworks.data.corpus.index import DOCUMENTS, Index, document_of
from lmworks.data.corpus.meaning import SemanticDedup, SemanticFindings
from lmworks.data.corpus.runner import Runner
from lmworks.data.corpus.split import contained, hold_out, overlapping
from lmworks.data.deduplication.fingerprints import DedupConfig
from lmworks.data.deduplication.groups import Groups, choose, find_groups

LEFT_OUT, TRAIN, VALIDATION = 0, 1, 2
_TEXTS_AT_ONCE = 4096


@dataclass(frozen=True)
class Decisions:
    """Of all documents."""

    groups: Groups
    winners: NDArray[np.int64]
    """[documents] whose exact or near duplicate each one is; its own number where it is nobody's."""
    split: NDArray[np.int8]
    """[documents] `LEFT_OUT`, `TRAIN` or `VALIDATION`."""
    moved_to_train: int
    """Held-out documents that repeat training text and went back to it."""
    semantic: SemanticFindings | None = None
    """What was dropped after that, where it was looked for."""


def decide(
    index: Index, dedup: DedupConfig, runner: Runner, *, validation_fraction: float, max_overlap: float, seed: int,
    semantic: SemanticDedup | None = None,
) -> Decisions:  # fmt: skip
    """Find duplicates, hold documents out, and move back those that training text repeats.

    Raises:
        DataError: the documents cannot be divided as asked.
    """
    prints = index.fingerprints()
    groups = find_groups(prints, dedup)
    kept, winners = choose(groups, prints, dedup, index.records["identity"])
    meanings = None
    if semantic is not None:
        meanings = semantic(index, kept)
        kept[meanings.dropped] = False
    held_out = hold_out(groups.keys, validation_fraction, seed)
    moved = 0
    split = np.where(held_out, VALIDATION, TRAIN).astype(np.int8)
    if held_out.any() and max_overlap < 1.0:
        numbers = np.flatnonzero(held_out)
        texts = (document.text for document in index.documents(numbers.tolist()))
        training = [(folder / DOCUMENTS, ~held_out[place]) for folder, place in index.slices()]

        def seen(grams: NDArray[np.uint64]) -> NDArray[np.bool_]:
            found = np.zeros(len(grams), np.bool_)
            for part in runner.map(partial(_seen_in_unit, grams), training, "compare with held-out documents"):
                found |= part
            return found

        back = numbers[overlapping(texts, seen, max_overlap)]
        split[back] = TRAIN
        moved = int(kept[back].sum())
    split[~kept] = LEFT_OUT
    if validation_fraction > 0.0 and not all((split == part).any() for part in (TRAIN, VALIDATION)):
        raise DataError(
            f"{kept.sum()} documents leave {(split == TRAIN).sum()} for training and "
            f"{(split == VALIDATION).sum()} held out",
            "Give more documents, raise max_overlap, or set validation_fraction to 0",
        )
    return Decisions(groups, winners, split, moved, meanings)


def _seen_in_unit(grams: NDArray[np.uint64], unit: tuple[Path, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """[grams] which of them the chosen documents of a unit have."""
    file, chosen = unit
    found = np.zeros(len(grams), np.bool_)
    texts: list[str] = []
    with file.open("rb") as lines:
        for line, wanted in zip(lines, chosen, strict=True):
            if wanted:
                texts.append(document_of(line).text)
            if len(texts) == _TEXTS_AT_ONCE:
                found |= contained(grams, texts)
                texts = []
    return found | contained(grams, texts)
