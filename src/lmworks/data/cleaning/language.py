"""Which language a text is in: py3langid, about 140 languages, its model inside the package. Knows no other rule.

Chosen by accuracy on labelled sentences (NTREX, MGSM, XCOPA) among what carries its model along
under a licence for any use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Annotated, Any

from pydantic import Field

from lmworks.core.config import Config
from lmworks.core.errors import ConfigError, require
from lmworks.core.generation import Document
from lmworks.data.steps import Dropped, Tally

LOOKED_AT = 4000
"""Characters; the language of a longer text is that of its beginning and its middle."""
FINEWEB_THRESHOLD = 0.65


class LanguageConfig(Config):
    """Which languages a corpus, or one of its inputs, may hold."""

    allow: tuple[str, ...] = ()
    """Codes of ISO 639, such as `en`; none only records each document's language in `meta`."""
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] = FINEWEB_THRESHOLD
    """Least probability of the language, where some are named; FineWeb's (Penedo et al. 2024, section 3.3)."""


@dataclass(frozen=True)
class Language:
    """What a text is in.

    Args:
        code: of ISO 639.
        probability: that the identifier gives it.
    """

    code: str
    probability: float


def languages() -> tuple[str, ...]:
    """Codes that can be told apart."""
    return tuple(sorted(str(code) for code in _identifier().labels))


def identify(text: str) -> Language:
    """The most probable language.

    Args:
        text: any text; `und` of one without letters.

    Raises:
        MissingExtraError: py3langid is not installed.
    """
    if len(text) > LOOKED_AT:
        middle = len(text) // 2
        text = text[: LOOKED_AT // 2] + " " + text[middle : middle + LOOKED_AT // 2]
    text = text.encode("utf-8", "replace").decode()
    if not any(map(str.isalpha, text)):
        return Language("und", 0.0)
    code, probability = _identifier().classify(text)
    return Language(str(code), float(probability))


@dataclass(frozen=True)
class LanguageStep:
    """Record each document's language, and keep those in the languages named.

    Args:
        allow: codes of ISO 639; all languages stay where none is named.
        threshold: least probability, FineWeb's by default.

    Raises:
        ConfigError: a language that cannot be identified is allowed.
    """

    allow: tuple[str, ...] = ()
    threshold: float = FINEWEB_THRESHOLD

    def __post_init__(self) -> None:
        unknown = sorted(set(self.allow) - set(languages()))
        if unknown:
            raise ConfigError(
                f"the languages {', '.join(unknown)} cannot be identified, so they cannot be allowed",
                f"Name codes among {', '.join(languages())}",
            )

    def __call__(self, document: Document, tally: Tally) -> Document | Dropped:
        """See `Step`; the value is the probability of an allowed language, 0 of any other."""
        language = identify(document.text)
        tally.count("languages", language.code)
        if self.allow:
            if language.code not in self.allow:
                return Dropped("language/not_allowed", 0.0)
            if language.probability < self.threshold:
                return Dropped("language/uncertain", language.probability)
        return replace(document, meta={**document.meta, "language": language.code})


@cache
def _identifier() -> Any:
    require("py3langid", "data")
    langid = import_module("py3langid.langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
