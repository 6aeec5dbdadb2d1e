"""A learned filter: how much a text reads like good ones, by a linear classifier over hashed n-grams of its words.

The bag-of-n-grams model of fastText (Joulin et al. 2017) with one weight a bucket: logistic regression on the logarithm
of each n-gram's count, each text scaled to length one, trained by AdaGrad (Duchi et al. 2011) one text at a time in an
order that the seed decides. Case and punctuation are not seen. Knows no files but its own and no threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmworks.core.config import Config
from lmworks.core.generation import Document
from lmworks.data.cleaning.trained_files import load_trained, save_trained
from lmworks.data.shingles import Shingles
from lmworks.data.steps import Dropped, Tally

KIND = "quality"
_AT_ONCE = 512
Features = tuple[NDArray[np.int64], NDArray[np.float64]]


class QualityConfig(Config):
    """A trained filter, and how good a text has to be."""

    model: Path
    """What `lmworks data train-filter` wrote."""
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Least probability of being good; the filter's own report says what each threshold keeps."""


@dataclass(frozen=True)
class QualityModel:
    """A linear classifier.

    Args:
        weights: one for each bucket, [buckets].
        bias: added to every text's sum.
        ngram: longest n-gram of words looked at.
    """

    weights: NDArray[np.float32]
    bias: float
    ngram: int = 2

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """[texts] probability that each is good; a text without words has the one of its bias."""
        found = features(texts, len(self.weights), self.ngram)
        sums = [float(self.weights[buckets] @ values) for buckets, values in found]
        return np.asarray(_sigmoid(np.asarray(sums, np.float64) + self.bias))

    def save(self, folder: Path) -> None:
        """Write the weights and the settings into an existing folder."""
        save_trained(folder, KIND, {"weights": self.weights}, {"bias": self.bias, "ngram": self.ngram})

    @classmethod
    def load(cls, folder: Path) -> QualityModel:
        """What `save` wrote.

        Raises:
            ArtifactError: it is not there or not whole.
        """
        return load_trained(
            folder,
            KIND,
            lambda arrays, settings: cls(arrays["weights"], float(settings["bias"]), int(settings["ngram"])),
        )


def features(texts: Sequence[str], buckets: int, ngram: int) -> Iterator[Features]:
    """Of each text its buckets, ascending, and their values: of Euclidean length one, nothing for no words."""
    for begin in range(0, len(texts), _AT_ONCE):
        shingles = Shingles(texts[begin : begin + _AT_ONCE])
        by_n = [shingles.ngrams(n) for n in range(1, ngram + 1)]
        ends = [np.cumsum(counts) for _, counts in by_n]
        for number, words in enumerate(shingles.lengths):
            hashes = [
                flat[end[number] - counts[number] : end[number]]
                for n, ((flat, counts), end) in enumerate(zip(by_n, ends, strict=True), 1)
                if words >= n
            ]
            if not hashes:
                yield np.empty(0, np.int64), np.empty(0)
                continue
            found, counts = np.unique(np.concatenate(hashes) % np.uint64(buckets), return_counts=True)
            values = np.log1p(counts)
            yield found.astype(np.int64), values / np.linalg.norm(values)


def fit(
    texts: Sequence[str], good: NDArray[np.bool_], *, buckets: int, ngram: int, epochs: int, lr: float, seed: int
) -> QualityModel:
    """Train a classifier; both sides weigh the same however many texts they have.

    Args:
        texts: to learn from.
        good: [texts] which of them are good.
        buckets: that n-grams are hashed into.
        ngram: longest n-gram of words.
        epochs: times that every text is seen.
        lr: AdaGrad's.
        seed: of the order of the texts.
    """
    rows = list(features(texts, buckets, ngram))
    share = float(good.mean())
    balance = np.where(good, 0.5 / share, 0.5 / (1 - share))
    weights, squares = np.zeros(buckets), np.full(buckets, 1e-8)
    bias, bias_squares = 0.0, 1e-8
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        for number in order.permutation(len(rows)).tolist():
            found, values = rows[number]
            error = float(balance[number] * (_sigmoid(weights[found] @ values + bias) - good[number]))
            gradient = error * values
            squares[found] += gradient * gradient
            weights[found] -= lr * gradient / np.sqrt(squares[found])
            bias_squares += error * error
            bias -= lr * error / np.sqrt(bias_squares)
    return QualityModel(weights.astype(np.float32), float(bias), ngram)


def _sigmoid(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * sums)))  # overflows nowhere


class QualityStep:
    """Keep documents that a trained filter takes for good; `meta["quality"]` holds the probability.

    Raises:
        ArtifactError: the filter is not there or not whole.
    """

    def __init__(self, config: QualityConfig) -> None:
        self.threshold, self.model = config.threshold, QualityModel.load(config.model)

    def __call__(self, document: Document, tally: Tally) -> Document | Dropped:
        """See `Step`; the value is the probability."""
        score = float(self.model.scores([document.text])[0])
        tally.count("quality", f"{min(int(score * 10), 9) / 10:.1f}")
        if score < self.threshold:
            return Dropped("quality/below_threshold", score)
        return replace(document, meta={**document.meta, "quality": round(score, 4)})
