"""The stage `data train-filter`: a quality filter from examples of good and bad text, measured on a held-out share.

A text's side of the split follows from its content, so that copies never stand on both. Knows no corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
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
from lmworks.core.progress import say
from lmworks.data.cleaning.normalize import divide, normalize
from lmworks.data.cleaning.quality import fit
from lmworks.data.extraction.sources import RowFields, read_documents

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
LEAST_TEXTS = 5
"""Of each side, in training and held out."""


class TrainFilterConfig(Config):
    """What is good, what is bad, and how to learn the difference."""

    good: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Files or folders of text that is worth keeping."""
    bad: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Files or folders of text that is not."""
    output: Path
    """Folder of the filter; `data prepare` takes it as `quality.model`."""
    text_field: str = "text"
    """Field of rows that holds the text."""
    max_characters: Annotated[int, Field(ge=100)] = 5_000
    """Longer texts are cut into pieces of at most this many characters."""
    max_texts: Annotated[int, Field(ge=10)] = 20_000
    """Of each side, those with the least hashes."""
    held_out: Annotated[float, Field(gt=0.0, le=0.5)] = 0.2
    """Share of the texts that is measured on."""
    buckets: Annotated[int, Field(ge=1 << 10, le=1 << 24)] = 1 << 18
    """Weights, which hashed n-grams share."""
    ngram: Annotated[int, Field(ge=1, le=5)] = 2
    """Longest n-gram of words."""
    epochs: Annotated[int, Field(ge=1)] = 5
    """Times that every text is seen."""
    lr: Annotated[float, Field(gt=0.0)] = 0.3
    """AdaGrad's."""
    seed: int = 0
    """Orders the texts."""


def train_quality_filter(config: TrainFilterConfig) -> Manifest:
    """Train a filter and measure it; precision and recall are of the good texts.

    Raises:
        DataError: a path cannot be read, or a side has too few texts.
    """
    started = clock()
    sides = {side: examples(getattr(config, side), config) for side in ("good", "bad")}
    common = sides["good"].keys() & sides["bad"].keys()
    if common:
        say(f"{len(common):,} texts are on both sides and are left out")
    rows = [
        (rank, text, side == "good") for side, texts in sides.items() for rank, text in sorted(texts.items())
        if rank not in common
    ]  # fmt: skip
    held = np.asarray([int(rank[-8:], 16) / 2**32 < config.held_out for rank, _, _ in rows], np.bool_)
    good = np.asarray([is_good for _, _, is_good in rows], np.bool_)
    for side, chosen in (("good", good), ("bad", ~good)):
        fewest = min(int((chosen & held).sum()), int((chosen & ~held).sum()))
        if fewest < LEAST_TEXTS:
            raise DataError(
                f"{int(chosen.sum())} {side} texts are too few: {LEAST_TEXTS} are needed to learn from, and as many "
                "to measure on",
                f"Give more {side} texts, or lower max_characters",
            )
    texts = [text for _, text, _ in rows]
    learned = [text for text, out in zip(texts, held, strict=True) if not out]
    say(f"learning from {len(learned):,} texts …")
    model = fit(
        learned, good[~held], buckets=config.buckets, ngram=config.ngram, epochs=config.epochs, lr=config.lr,
        seed=config.seed,
    )  # fmt: skip
    scores = model.scores([text for text, out in zip(texts, held, strict=True) if out])
    measured = [measure(scores, good[held], threshold) for threshold in THRESHOLDS]
    with write_artifact(
        config.output,
        "quality-filter",
        config=config.to_dict(),
        parents={f"{side}.{n}": path for side in sides for n, path in enumerate(getattr(config, side))},
        code_version=code_version(__name__),
        started=started,
    ) as writer:
        model.save(writer.folder)
        writer.metrics = {
            "trained_on": len(learned),
            "held_out_good": int((good & held).sum()),
            "held_out_bad": int((~good & held).sum()),
            "area_under_roc": round(area_under_roc(scores, good[held]), 4),
            "thresholds": [row.to_dict() for row in measured],
        }
    for row in measured:
        say(f"threshold {row.threshold}: precision {row.precision:.3f}, recall {row.recall:.3f}")
    assert writer.manifest is not None, "the block above published it"
    return writer.manifest


def examples(paths: Sequence[Path], config: TrainFilterConfig) -> dict[str, str]:
    """Different texts by their hash: the `max_texts` with the least."""
    found: dict[str, str] = {}
    for path in paths:
        for document in read_documents(path, RowFields(config.text_field, "")):
            if isinstance(document, Document):
                for piece in divide(normalize(document.text), config.max_characters):
                    found[hashlib.blake2b(piece.encode(), digest_size=16).hexdigest()] = piece
        if len(found) > 2 * config.max_texts:
            found = dict(sorted(found.items())[: config.max_texts])
    return dict(sorted(found.items())[: config.max_texts])


@dataclass(frozen=True)
class Measured:
    """How well a threshold divides held-out texts."""

    threshold: float
    precision: float
    """Share of good texts among those kept; 1 where none is kept."""
    recall: float
    """Share of the good texts that is kept."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "threshold": self.threshold, "precision": round(self.precision, 4), "recall": round(self.recall, 4)
        }  # fmt: skip


def measure(scores: NDArray[np.float64], good: NDArray[np.bool_], threshold: float) -> Measured:
    """Precision and recall of keeping what scores at least a threshold."""
    kept = scores >= threshold
    right = int((kept & good).sum())
    return Measured(threshold, right / int(kept.sum()) if kept.any() else 1.0, right / max(int(good.sum()), 1))


def area_under_roc(scores: NDArray[np.float64], good: NDArray[np.bool_]) -> float:
    """Chance that a good text scores above a bad one; equal scores count half."""
    bad = np.sort(scores[~good])
    below = np.searchsorted(bad, scores[good], "left") + np.searchsorted(bad, scores[good], "right")
    return float(below.sum() / 2 / max(len(bad) * int(good.sum()), 1))
