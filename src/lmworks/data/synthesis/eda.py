"""Easy data augmentation: a text with a few words replaced, inserted, swapped or left out.

Wei & Zou 2019, arXiv:1901.11196. Pure functions of the text and a source of chance. Knows no model.

Synonyms are given, as none are shipped; without them words are only swapped and left out. Words are what white
space divides; a text without it (Chinese, Japanese) is taken character by character.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Annotated

from pydantic import Field

from lmworks.core.config import Config


class EdaConfig(Config):
    """How much is changed."""

    alpha: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the words that change; at least one does."""
    synonyms: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Words in lower case and what may stand for them."""


Synonyms = Mapping[str, Sequence[str]]


def replace_words(text: list[str], count: int, random: Random, synonyms: Synonyms) -> list[str]:
    """`count` of the words that have synonyms by one of them each."""
    known = [number for number, word in enumerate(text) if synonyms.get(word.lower())]
    chosen = random.sample(known, min(count, len(known)))
    changed = {number: random.choice(synonyms[text[number].lower()]) for number in sorted(chosen)}
    return [changed.get(number, word) for number, word in enumerate(text)]


def insert_words(text: list[str], count: int, random: Random, synonyms: Synonyms) -> list[str]:
    """`count` synonyms of words of the text at places of chance."""
    known, changed = [word.lower() for word in text if synonyms.get(word.lower())], list(text)
    for _ in range(count if known else 0):
        changed.insert(random.randrange(len(changed) + 1), random.choice(synonyms[random.choice(known)]))
    return changed


def swap_words(text: list[str], count: int, random: Random, synonyms: Synonyms) -> list[str]:
    """`count` times two words in each other's place."""
    changed = list(text)
    for _ in range(count if len(text) > 1 else 0):
        one, other = random.sample(range(len(changed)), 2)
        changed[one], changed[other] = changed[other], changed[one]
    return changed


def leave_out_words(text: list[str], count: int, random: Random, synonyms: Synonyms) -> list[str]:
    """The text without `count` words, of which one at least stays."""
    gone = set(random.sample(range(len(text)), min(count, len(text) - 1)))
    return [word for number, word in enumerate(text) if number not in gone]


OPERATIONS: dict[str, Callable[[list[str], int, Random, Synonyms], list[str]]] = {
    "synonym_replacement": replace_words,
    "random_insertion": insert_words,
    "random_swap": swap_words,
    "random_deletion": leave_out_words,
}
NEED_SYNONYMS = ("synonym_replacement", "random_insertion")


def augment(text: str, operation: str, random: Random, config: EdaConfig) -> str:
    """The text changed by one of `OPERATIONS`."""
    spaced = len(text.split()) > 1
    pieces = text.split() if spaced else list(text.strip())
    if not pieces:
        return text
    count = max(1, round(config.alpha * len(pieces)))
    changed = OPERATIONS[operation](pieces, count, random, config.synonyms)
    return (" " if spaced else "").join(changed)


def operations(config: EdaConfig) -> list[str]:
    """Those that can change something with these synonyms."""
    return [name for name in OPERATIONS if config.synonyms or name not in NEED_SYNONYMS]
