"""The inputs of a corpus: paths and named sources, each with the rules that fit its text. Knows no cleaning step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.core.lineage import MANIFEST, load_manifest
from lmworks.data.acquisition.fetch import FetchConfig, fetch
from lmworks.data.cleaning.filters import Preset
from lmworks.data.cleaning.language import LanguageConfig
from lmworks.data.cleaning.licenses import LicenseConfig
from lmworks.data.cleaning.perplexity import PerplexityConfig
from lmworks.data.cleaning.quality import QualityConfig
from lmworks.data.cleaning.word_lists import WordListConfig
from lmworks.data.extraction.sources import RowFields


class InputConfig(Config):
    """One input and what differs for it; a bare path stands for an input without differences."""

    path: Path | None = None
    """A fetched source, a folder or a file."""
    source: str | None = None
    """Instead of a path: a source of the catalog, such as `wikipedia-intros`, fetched where it is not there yet."""
    preset: Preset | None = None
    """Filter rules of this input; None takes the corpus's."""
    min_words: Annotated[int | None, Field(ge=1)] = None
    """Fewest words of a document; None takes the corpus's."""
    text_field: str | None = None
    """Field of rows that holds the text; None takes the corpus's."""
    license: str | None = None
    """Recorded for documents that state no licence of their own; None takes the corpus's."""
    language: LanguageConfig | None = None
    """Languages of this input; None takes the corpus's."""
    quality: QualityConfig | None = None
    """A trained filter for this input; None takes the corpus's."""
    perplexity: PerplexityConfig | None = None
    """A perplexity filter for this input, as of its language; None takes the corpus's."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, values: Any) -> Any:
        return {"path": values} if isinstance(values, (str, Path)) else values

    @model_validator(mode="after")
    def _one_place(self) -> InputConfig:
        if (self.path is None) == (self.source is None):
            raise ValueError(f"path = {self.path} and source = {self.source!r}: give one of the two")
        return self


@dataclass(frozen=True)
class Treatment:
    """How the documents of an input are cleaned."""

    preset: Preset
    min_words: int | None
    fields: RowFields
    licenses: LicenseConfig | None = None
    language: LanguageConfig | None = None
    words: tuple[WordListConfig, ...] = ()
    quality: QualityConfig | None = None
    perplexity: PerplexityConfig | None = None


@dataclass(frozen=True)
class Input:
    """A place to read, and how."""

    path: Path
    treatment: Treatment


def resolve_inputs(inputs: Sequence[InputConfig], otherwise: Treatment) -> list[Input]:
    """Places and treatments; named sources are fetched.

    Raises:
        ConfigError: the catalog has no such source.
        DownloadError: a source cannot be fetched.
    """
    found = []
    for given in inputs:
        fields = RowFields(given.text_field or otherwise.fields.text, given.license or otherwise.fields.license)
        treatment = Treatment(
            given.preset or otherwise.preset, given.min_words or otherwise.min_words, fields, otherwise.licenses,
            given.language or otherwise.language, otherwise.words, given.quality or otherwise.quality,
            given.perplexity or otherwise.perplexity,
        )  # fmt: skip
        found.append(Input(given.path or _fetched(given.source or ""), treatment))
    return found


def _fetched(name: str) -> Path:
    """The source's folder; what was fetched there with a `limit` is not the source, and is fetched whole."""
    config = FetchConfig.parse({"name": name})
    if not (config.output / MANIFEST).exists() or load_manifest(config.output).config.get("limit") is not None:
        fetch(config)
    return config.output
