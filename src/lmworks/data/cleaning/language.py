"""Which language a text is in: py3langid, about 140 languages, its model inside the package. Knows no other rule.

Chosen by accuracy on labelled sentences (NTREX, MGSM, XCOPA) among what carries its model along
under a licence for any use.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from lmworks.core.errors import ConfigError, require
from lmworks.core.generation import Document
from lmworks.data.steps import Dropped, Tally

LOOKED_AT = 4000
"""Characters; the language of a longer text is that of its beginning and its middle."""
FINEWEB_THRESHOLD = 0.65


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
    """Keep documents in the languages named.

    Args:
        allowed: codes of ISO 639.
        threshold: least probability, FineWeb's by default.

    Raises:
        ConfigError: no language, or one that cannot be identified, is allowed.
    """

    allowed: tuple[str, ...]
    threshold: float = FINEWEB_THRESHOLD

    def __post_init__(self) -> None:
        unknown = sorted(set(self.allowed) - set(languages()))
        if unknown or not self.allowed:
            raise ConfigError(
                f"the languages {', '.join(unknown) or '(none)'} cannot be allowed",
                f"Name codes among {', '.join(languages())}",
            )

    def __call__(self, document: Document, tally: Tally) -> Document | Dropped:
        """See `Step`; the value is the probability of an allowed language, 0 of any other."""
        language = identify(document.text)
        tally.count("languages", language.code)
        probability = language.probability if language.code in self.allowed else 0.0
        return document if probability >= self.threshold else Dropped("language/not_allowed", probability)


@cache
def _identifier() -> Any:
    require("py3langid", "data")
    langid = import_module("py3langid.langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
