"""Which language a text is in: py3langid, about 140 languages, its model inside the package. Knows no other rule.

Chosen by accuracy on labelled sentences (NTREX, MGSM, XCOPA) among what carries its model along under a licence for any
use. Two things are ours. What is written in a script that the model never saw is `und`. And a Chinese text is Cantonese
or Wu where it holds words of theirs: most of what their speakers write is standard Chinese, which only the words tell
apart, and the model takes one line in fourteen of standard Chinese for one of them.
"""

from __future__ import annotations

import re
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
LEAST_PROBABILITY = 0.02
"""Chance gives each language about 0.01; a text of which no more can be said is `und`, such as two letters."""

_CHINESE = ("zh", "yue", "wuu")
_OWN_WORDS = {
    "yue": re.compile("[嘅唔喺咗佢哋冇啲嚟咁噉嘢嗰諗谂啱嘥㗎]"),
    "wuu": re.compile("[侬搿伲呒嘸]|(?<!吾)侪|阿拉(?!伯|善|斯)|辰光|哪能|脱仔|垃[拉海]|勿[是会會要好得能晓曉分受]"),
}
_LETTERS_FOR_A_WORD = 30
# Scripts of the languages: Latin, Greek, Cyrillic, Armenian, Hebrew, Arabic; those of India, Thai, Lao, Tibetan,
# Burmese, Georgian, Hangul, Ethiopic; Khmer, more Latin, Georgian, Greek and Ethiopic; kana and Han; more of all.
_SCRIPTS = (
    "A-Za-z\u00aa-\u02af\u0370-\u06ff\u0750-\u077f\u08a0-\u139f\u1780-\u17ff\u1c80-\u1cbf\u1d00-\u1fff\u2c60-\u2c7f"
    "\u2d00-\u2d2f\u2d80-\u2dff\u3005-\u318f\u31a0-\u9fff\ua640-\ua69f\ua720-\ua7ff\ua8e0-\ua8ff\ua960-\ua97f"
    "\ua9e0-\ua9ff\uaa60-\uaa7f\uab00-\uab6f\uac00-\ud7ff\uf900-\ufdff\ufe70-\uffef\U0001b000-\U0003ffff"
)
_LETTER, _OF_OTHER_SCRIPT = re.compile(r"[^\W\d_]"), re.compile(rf"[^\W\d_{_SCRIPTS}]")


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
    letters = len(_LETTER.findall(text))
    if not letters or 2 * len(_OF_OTHER_SCRIPT.findall(text)) > letters:
        return Language("und", 0.0)
    code, probability = _identifier().classify(text)
    if code in _CHINESE:
        return _chinese(text, letters)
    if probability < LEAST_PROBABILITY:
        return Language("und", float(probability))
    return Language(str(code), float(probability))


def _chinese(text: str, letters: int) -> Language:
    """Which of those that are written with Han characters alone, with the probability that it is one of them."""
    ranked = dict(_identifier().rank(text))
    found = {one: len(words.findall(text)) for one, words in _OWN_WORDS.items()}
    most = max(found, key=found.__getitem__)
    code = most if found[most] * _LETTERS_FOR_A_WORD >= letters else "zh"
    return Language(code, min(float(sum(ranked[one] for one in _CHINESE)), 1.0))


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
