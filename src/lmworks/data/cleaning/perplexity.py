"""The perplexity filter: documents are ranked by how much they surprise a model of text that was chosen for it.

CCNet's three parts (Wenzek et al. 2020): the head reads like the model's text, the middle like much of the web, the
tail hardly like language. Their bounds are percentiles of a sample that was scored when the model was trained, so what
becomes of a document depends on nobody else. Knows no files but its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.core.generation import Document
from lmworks.data.cleaning.kneser_ney import Level
from lmworks.data.cleaning.trained_files import Arrays, load_trained, save_trained
from lmworks.data.cleaning.word_ngrams import WordNgramModel
from lmworks.data.steps import Dropped, Tally

KIND = "perplexity"
PERCENTS = np.arange(101)
Part = Literal["head", "middle", "tail"]


class PerplexityConfig(Config):
    """A model of words, and how surprising a text may be."""

    model: Path
    """What `lmworks data train-filter --kind perplexity` wrote."""
    keep: Annotated[tuple[Part, ...], Field(min_length=1)] = ("head", "middle")
    """Parts that stay; `head`, `middle` and `tail` only record the perplexity in `meta`."""
    head: Annotated[float, Field(ge=0.0, le=100.0)] = 30.0
    """Percentile of the filter's sample where the head ends; CCNet's."""
    middle: Annotated[float, Field(ge=0.0, le=100.0)] = 60.0
    """Percentile where the middle ends and the tail begins; CCNet's."""
    min_perplexity: Annotated[float | None, Field(ge=1.0)] = None
    """Texts below are dropped whatever their part: boilerplate and lists repeat what is known."""
    max_perplexity: Annotated[float | None, Field(ge=1.0)] = None
    """Texts above are dropped whatever their part."""

    @model_validator(mode="after")
    def _ordered(self) -> PerplexityConfig:
        if self.head > self.middle:
            raise ValueError(f"head = {self.head} ends behind middle = {self.middle}")
        low, high = self.min_perplexity, self.max_perplexity
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_perplexity = {low} is above max_perplexity = {high}")
        return self


@dataclass(frozen=True)
class PerplexityModel:
    """A model of words and the perplexities of the sample that it is judged by.

    Args:
        words: of chosen text.
        quantiles: [101] perplexities of the sample at each percent, ascending.
    """

    words: WordNgramModel
    quantiles: NDArray[np.float64]

    def at(self, percentile: float) -> float:
        """The perplexity that so many percent of the sample stay at or below."""
        return float(np.interp(percentile, PERCENTS, self.quantiles))

    def save(self, folder: Path) -> None:
        """Write the grams and the settings into an existing folder."""
        levels = {f"{n}.": vars(level) for n, level in enumerate(self.words.levels, 1)}
        arrays = {n + name: values for n, level in levels.items() for name, values in level.items()}
        save_trained(folder, KIND, arrays, {"ngram": len(levels), "quantiles": self.quantiles.tolist()})

    @classmethod
    def load(cls, folder: Path) -> PerplexityModel:
        """What `save` wrote.

        Raises:
            ArtifactError: it is not there or not whole.
        """

        def made(arrays: Arrays, settings: Mapping[str, Any]) -> PerplexityModel:
            names, ngrams = Level.__dataclass_fields__, range(1, settings["ngram"] + 1)
            levels = [Level(**{name: arrays[f"{n}.{name}"] for name in names}) for n in ngrams]
            quantiles = np.asarray(settings["quantiles"], np.float64).reshape(len(PERCENTS))
            return cls(WordNgramModel(tuple(levels)), quantiles)

        return load_trained(folder, KIND, made)


class PerplexityStep:
    """Keep documents of the wanted parts; `meta["perplexity"]` holds the perplexity per word.

    Raises:
        ArtifactError: the filter is not there or not whole.
    """

    def __init__(self, config: PerplexityConfig) -> None:
        self.config, self.model = config, PerplexityModel.load(config.model)
        self._bounds = (self.model.at(config.head), self.model.at(config.middle))

    def part(self, perplexity: float) -> Part:
        """Of the sample, where such a text would stand."""
        head, middle = self._bounds
        return "head" if perplexity <= head else "middle" if perplexity <= middle else "tail"

    def __call__(self, document: Document, tally: Tally) -> Document | Dropped:
        """See `Step`; the value is the perplexity."""
        perplexity = float(self.model.words.perplexities([document.text])[0])
        part = self.part(perplexity)
        tally.count("perplexity", part)
        if self.config.max_perplexity is not None and perplexity > self.config.max_perplexity:
            return Dropped("perplexity/above_maximum", perplexity)
        if self.config.min_perplexity is not None and perplexity < self.config.min_perplexity:
            return Dropped("perplexity/below_minimum", perplexity)
        if part not in self.config.keep:
            return Dropped(f"perplexity/{part}", perplexity)
        return replace(document, meta={**document.meta, "perplexity": round(perplexity, 2)})
