"""Grades of a short text answer against reference answers: exact match, token F1, containment.

All three compare normalized text, so case, punctuation, articles and spacing never decide. Each returns the
best grade over the references, between 0 and 1. Knows neither the task nor who asks.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_IDEOGRAPH = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


def normalize(text: str) -> str:
    """Lower-case `text` and drop punctuation, English articles and surplus white space.

    The rule of SQuAD's evaluation script (Rajpurkar et al. 2016, arXiv:1606.05250), which HELM calls
    quasi-exact; punctuation is widened from ASCII to all of Unicode, as MLQA does, so that `«Paris»。` is `paris`.
    """
    kept = "".join(
        c for c in text.lower() if c not in string.punctuation and not unicodedata.category(c).startswith("P")
    )
    return " ".join(_ARTICLES.sub(" ", kept).split())


def tokens(text: str) -> list[str]:
    """Words of the normalized text; each ideograph and kana is a word, as Chinese and Japanese have no spaces."""
    return _IDEOGRAPH.sub(r" \1 ", normalize(text)).split()


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 when the normalized prediction equals a normalized reference, else 0.0."""
    return _best(lambda reference: float(normalize(prediction) == normalize(reference)), references)


def contains(prediction: str, references: Sequence[str]) -> float:
    """1.0 when a reference's words occur in the prediction, in order and side by side, else 0.0.

    Whole words are compared: `art` is not contained in `party`. A reference that normalizes to nothing is
    contained only in a prediction that does too.
    """
    words = tokens(prediction)

    def found(reference: str) -> float:
        wanted = tokens(reference)
        if not wanted:
            return float(not words)
        return float(any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1)))

    return _best(found, references)


def f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall, counting repeated words as often as both sides have them.

    When either side normalizes to nothing the grade is 1.0 if both do, else 0.0.
    """
    predicted = tokens(prediction)

    def overlap(reference: str) -> float:
        wanted = tokens(reference)
        if not predicted or not wanted:
            return float(predicted == wanted)
        shared = (Counter(predicted) & Counter(wanted)).total()
        return 2 * shared / (len(predicted) + len(wanted))

    return _best(overlap, references)


def _best(grade: Callable[[str], float], references: Sequence[str]) -> float:
    """The highest grade over the references; an answer cannot be graded against none.

    Raises:
        ValueError: `references` is empty, or is one string (which would be read letter by letter).
    """
    if isinstance(references, str):
        raise ValueError(f"references must be a sequence of strings, got the string {references!r}: wrap it in a list")
    if not references:
        raise ValueError("references is empty: at least one reference answer is needed to grade against")
    return max(grade(reference) for reference in references)
