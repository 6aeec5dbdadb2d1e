"""The stage `data train-filter`: a filter from examples of text, measured on a held-out share.

A quality filter learns good text from bad; a perplexity filter learns to expect good text. Whole documents are held
out, so that neither copies nor pieces of one stand on both sides of the split. Knows no corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.errors import DataError
from lmworks.core.lineage import Manifest, clock, write_artifact
from lmworks.core.progress import say
from lmworks.data.cleaning.normalize import divide, normalize
from lmworks.data.cleaning.perplexity import PERCENTS, PerplexityModel
from lmworks.data.cleaning.quality import QualityModel, fit
from lmworks.data.cleaning.word_ngrams import WordNgramModel
from lmworks.data.corpus.filter_figures import figures
from lmworks.data.extraction.sources import Rejection, RowFields, read_documents

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
PERCENTILES = (30, 60, 90)
LEAST_TEXTS = 5
"""Of each side, in training and held out."""


class Example(NamedTuple):
    """A text, or a piece of one."""

    document: str
    """Hash of the whole; the least of several that hold this piece."""
    text: str


Texts = Mapping[str, Example]
"""Different texts by their hash."""


class TrainFilterConfig(Config):
    """What is good, what is bad, and how to learn the difference."""

    good: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Files or folders of text that is worth keeping."""
    bad: tuple[Path, ...] = ()
    """Files or folders of text that is not; a perplexity filter is only measured on it."""
    output: Path
    """Folder of the filter; `data prepare` takes it as `quality.model` or `perplexity.model`."""
    text_field: str = "text"
    """Field of rows that holds the text."""
    max_characters: Annotated[int, Field(ge=100)] = 5_000
    """Longer texts are cut into pieces of at most this many characters."""
    max_texts: Annotated[int, Field(ge=10)] = 20_000
    """Of each side, those with the least hashes."""
    held_out: Annotated[float, Field(gt=0.0, le=0.5)] = 0.2
    """Share of the texts that is measured on, five at least."""
    buckets: Annotated[int, Field(ge=1 << 10, le=1 << 24)] = 1 << 18
    """Weights, which hashed n-grams share."""
    ngram: Annotated[int | None, Field(ge=1, le=5)] = None
    """Longest n-gram of words; None takes 2 for quality, 3 for perplexity."""
    epochs: Annotated[int, Field(ge=1)] = 5
    """Times that every text is seen."""
    lr: Annotated[float, Field(gt=0.0)] = 0.3
    """AdaGrad's."""
    seed: int = 0
    """Orders the texts."""
    kind: Literal["quality", "perplexity"] = "quality"
    """`quality` tells good text from bad; `perplexity` tells how surprising a text is to who read the good ones."""
    sample: tuple[Path, ...] = ()
    """Of kind perplexity: text as it will be filtered, whose percentiles are the bounds of head, middle and tail. The
    held-out good texts where none is given."""

    @model_validator(mode="after")
    def _has_sides(self) -> TrainFilterConfig:
        if self.kind == "quality" and not self.bad:
            raise ValueError("bad = (): a quality filter learns from both sides")
        if self.kind == "quality" and self.sample:
            raise ValueError("sample has no effect on kind = quality: a quality filter has no percentiles")
        return self


def train_filter(config: TrainFilterConfig) -> Manifest:
    """Train a filter and measure it; precision and recall are of the good texts.

    Raises:
        DataError: a path cannot be read, or a side has too few texts.
    """
    started = clock()
    sides = {side: examples(getattr(config, side), config) for side in ("good", "bad", "sample")}
    common = sides["good"].keys() & sides["bad"].keys()
    if common:
        say(f"{len(common):,} texts are on both sides and are left out")
        for side in ("good", "bad"):
            sides[side] = {rank: text for rank, text in sides[side].items() if rank not in common}
    learn = _learn_perplexity if config.kind == "perplexity" else _learn_quality
    model, metrics = learn(sides["good"], sides["bad"], sides["sample"], config)
    with write_artifact(
        config.output,
        f"{config.kind}-filter",
        config=config.to_dict(),
        parents={f"{side}.{n}": path for side in sides for n, path in enumerate(getattr(config, side))},
        code_version=code_version(__name__),
        started=started,
    ) as writer:
        model.save(writer.folder)
        writer.metrics = metrics
    assert writer.manifest is not None, "the block above published it"
    return writer.manifest


Learned = tuple[QualityModel | PerplexityModel, dict[str, Any]]
"""A filter, and what was measured."""


def _learn_quality(good: Texts, bad: Texts, _: Texts, config: TrainFilterConfig) -> Learned:
    (good_learned, good_held), (bad_learned, bad_held) = (
        divided(texts, side, config.held_out) for side, texts in (("good", good), ("bad", bad))
    )
    learned = good_learned + bad_learned
    say(f"learning from {len(learned):,} texts …")
    is_good = np.arange(len(learned)) < len(good_learned)
    model = fit(
        learned, is_good, buckets=config.buckets, ngram=config.ngram or 2, epochs=config.epochs, lr=config.lr,
        seed=config.seed,
    )  # fmt: skip
    scores = model.scores(good_held + bad_held)
    return model, {"trained_on": len(learned), **figures(scores, len(good_held), {t: t for t in THRESHOLDS})}


def _learn_perplexity(good: Texts, bad: Texts, sample: Texts, config: TrainFilterConfig) -> Learned:
    learned, held = divided(good, "good", config.held_out)
    unread = [example.text for rank, example in sample.items() if rank not in good]
    if config.sample and len(unread) < LEAST_TEXTS:
        raise DataError(
            f"{len(unread)} texts of the sample are not among the good ones: {LEAST_TEXTS} are needed to tell percents",
            "Give more text in sample, or none",
        )
    say(f"learning from {len(learned):,} texts …")
    words = WordNgramModel.fit(learned, config.ngram or 3)
    expected = words.perplexities(held)
    judged = words.perplexities(unread) if unread else expected
    model = PerplexityModel(words, np.quantile(judged, PERCENTS / 100))
    metrics: dict[str, Any] = {
        "trained_on": len(learned),
        "vocabulary": words.vocabulary,
        "grams": sum(len(level.grams) for level in words.levels),
        "held_out_good": len(held),
        "held_out_perplexity": round(float(np.median(expected)), 2),
        "sample": len(judged),
        "percentiles": {str(percent): round(model.at(percent), 2) for percent in PERCENTILES},
    }
    say(f"perplexity of held-out good text: {metrics['held_out_perplexity']:,} per word (median)")
    for percent, bound in metrics["percentiles"].items():
        say(f"{percent} % of the {'sample' if unread else 'held-out good text'} are at or below {bound:,}")
    if bad:
        strange = words.perplexities([example.text for _, example in sorted(bad.items())])
        scores = -np.concatenate([expected, strange])
        metrics |= figures(scores, len(expected), {percent: -model.at(percent) for percent in PERCENTILES})
    return model, metrics


def divided(texts: Texts, side: str, held_out: float) -> tuple[list[str], list[str]]:
    """Those to learn from and those to measure on, whole documents by their hashes.

    Raises:
        DataError: they are too few.
    """
    learned: list[str] = []
    held: list[str] = []
    wanted = max(held_out * len(texts), LEAST_TEXTS)
    for _, examples in groupby(sorted(texts.values()), key=lambda example: example.document):
        pieces = [example.text for example in examples]
        fits = len(held) < wanted and 2 * len(pieces) <= len(texts)
        (held if fits else learned).extend(pieces)
    if min(len(learned), len(held)) < LEAST_TEXTS:
        raise DataError(
            f"{len(texts)} {side} texts are too few, or pieces of too few documents: {LEAST_TEXTS} are needed to learn "
            "from, and as many of other documents to measure on",
            f"Give more {side} documents",
        )
    return learned, held


def examples(paths: Sequence[Path], config: TrainFilterConfig) -> dict[str, Example]:
    """Different texts by their hash: the `max_texts` with the least.

    Raises:
        DataError: a path cannot be read, or nothing but rejections comes from them.
    """
    found: dict[str, Example] = {}
    rejections: list[Rejection] = []
    for path in paths:
        for document in read_documents(path, RowFields(config.text_field, "")):
            if isinstance(document, Rejection):
                rejections.append(document)
                continue
            text = normalize(document.text)
            for piece in divide(text, config.max_characters):
                example, rank = Example(_hash(text), piece), _hash(piece)
                found[rank] = min(example, found.get(rank, example))
        if len(found) > 2 * config.max_texts:
            found = dict(sorted(found.items())[: config.max_texts])
    if rejections:
        first = rejections[0]
        said = f"{len(rejections):,} documents cannot be read, {first.place} the first: {first.reason}: {first.detail}"
        if not found:
            raise DataError(said, "Look at the files, and at text_field")
        say(said)
    return dict(sorted(found.items())[: config.max_texts])


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
