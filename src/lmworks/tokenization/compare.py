"""Tokenizers measured on texts: how many tokens they need, what they lose, which of their entries nothing uses.

Knows neither files nor tables.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lmworks.core.errors import DataError
from lmworks.tokenization.definition import token_text
from lmworks.tokenization.tokenizer import Tokenizer
from lmworks.tokenization.under_trained import under_trained

_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_SURROUNDINGS = ("", " ", "a", "A", "e", "s", ".", "\n", "中")
"""What may have to stand before a token's text for the tokenizer to choose it: a word's later pieces, runs of marks."""
_IN_NO_TEXT = {bytes([byte]) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}
"""Bytes that UTF-8 never has."""
_AT_ONCE = 256


@dataclass(frozen=True)
class TextFigures:
    """One tokenizer on one set of texts."""

    documents: int
    num_bytes: int
    tokens: int
    bytes_per_token: float
    tokens_per_character: float
    tokens_per_word: float
    """Fertility (arXiv:2012.15613): a word is a run of letters and digits. Where scripts put no spaces it says little;
    there tokens per character do."""
    unknown_share: float
    """Of the tokens, how many stand for what the vocabulary lacks."""
    exact_share: float
    """Of the documents, how many come back character by character."""
    megabytes_per_second: float
    """Encoding, on all cores."""
    unspaced_share: float = 0.0
    """Of the characters, how many are of scripts without spaces between words: Chinese, Japanese, Thai, ..."""


@dataclass(frozen=True)
class VocabularyFigures:
    """One vocabulary, besides its special tokens."""

    vocab_size: int
    unused: int
    """Entries in none of the texts."""
    unreachable: int
    """Entries that their own text does not give, whatever of a few beginnings stands before it: a model never sees
    them trained (arXiv:2405.05417)."""
    partial: int
    """Entries that are a part of a character, whose reachability no text shows alone."""
    examples: tuple[str, ...]
    """Some that are unreachable."""
    under_trained: int | None = None
    """Entries that a model hardly met in training, by its output matrix; None where that was not given or is mute."""
    under_trained_examples: tuple[str, ...] = ()
    """The most suspicious ones."""


@dataclass(frozen=True)
class Comparison:
    """All figures, by the tokenizers' names."""

    texts: Mapping[str, Mapping[str, TextFigures]]
    """By the texts' names within each."""
    vocabularies: Mapping[str, VocabularyFigures]
    overlap: Mapping[tuple[str, str], float]
    """Of two vocabularies, entries in both over entries in either, compared as bytes (Jaccard)."""

    def to_dict(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "tokenizers": {
                name: {**asdict(self.vocabularies[name]), "texts": {t: asdict(f) for t, f in found.items()}}
                for name, found in self.texts.items()
            },
            "overlap": [{"first": a, "second": b, "jaccard": share} for (a, b), share in self.overlap.items()],
        }


def compare(
    tokenizers: Mapping[str, Tokenizer],
    texts: Mapping[str, Sequence[str]],
    heads: Mapping[str, NDArray[np.float32]] | None = None,
) -> Comparison:
    """Measure tokenizers on the same texts.

    Args:
        tokenizers: by name.
        texts: documents by the name of what they are.
        heads: `[V, E]`, the output matrices of models that were trained with some of the tokenizers.

    Raises:
        DataError: a set of texts is empty.
    """
    for name, documents in texts.items():
        if not any(documents):
            raise DataError(f"the texts {name!r} are empty", "Give some of their kind")
    figures: dict[str, dict[str, TextFigures]] = {}
    vocabularies = {}
    for name, tokenizer in tokenizers.items():
        used = np.zeros(tokenizer.vocab_size, bool)
        figures[name] = {t: _measure(tokenizer, documents, used) for t, documents in texts.items()}
        vocabularies[name] = _vocabulary(tokenizer, used, (heads or {}).get(name))
    spelled = {name: {tokenizer.token_bytes(i) for i in _entries(tokenizer)} for name, tokenizer in tokenizers.items()}
    overlap = {
        (a, b): len(spelled[a] & spelled[b]) / max(1, len(spelled[a] | spelled[b])) for a, b in combinations(spelled, 2)
    }
    return Comparison(figures, vocabularies, overlap)


def _measure(tokenizer: Tokenizer, documents: Sequence[str], used: NDArray[np.bool_]) -> TextFigures:
    tokens = unknown = exact = num_bytes = characters = words = unspaced = 0
    seconds = 0.0
    unknown_id = tokenizer.token_id(_unknown(tokenizer) or "")
    for start in range(0, len(documents), _AT_ONCE):
        group = documents[start : start + _AT_ONCE]
        began = time.perf_counter()
        encoded = tokenizer.encode_batch(group)
        seconds += time.perf_counter() - began
        for text, ids in zip(group, encoded, strict=True):
            tokens += len(ids)
            unknown += 0 if unknown_id is None else ids.count(unknown_id)
            used[ids] = True
            exact += tokenizer.decode(ids) == text
            num_bytes += len(text.encode())
            characters += len(text)
            words += len(_WORD.findall(text))
            unspaced += len(_UNSPACED.findall(text))
    return TextFigures(
        documents=len(documents),
        num_bytes=num_bytes,
        tokens=tokens,
        bytes_per_token=num_bytes / max(1, tokens),
        tokens_per_character=tokens / max(1, characters),
        tokens_per_word=tokens / max(1, words),
        unknown_share=unknown / max(1, tokens),
        exact_share=exact / len(documents),
        megabytes_per_second=num_bytes / 1e6 / seconds,
        unspaced_share=unspaced / max(1, characters),
    )


def _vocabulary(tokenizer: Tokenizer, used: NDArray[np.bool_], head: NDArray[np.float32] | None) -> VocabularyFigures:
    entries = _entries(tokenizer)
    texts, partial, impossible = {}, 0, []
    for i in entries:
        spelled = tokenizer.token_bytes(i)
        try:
            texts[i] = spelled.decode()
        except UnicodeDecodeError:
            partial += 1
            impossible += [i] if spelled in _IN_NO_TEXT else []
    unreachable = set(texts) - set(np.flatnonzero(used).tolist())
    for before in _SURROUNDINGS:
        asked = sorted(unreachable)
        for start in range(0, len(asked), _AT_ONCE):
            group = asked[start : start + _AT_ONCE]
            encoded = tokenizer.encode_batch([before + texts[i] for i in group])
            unreachable -= {i for i, ids in zip(group, encoded, strict=True) if i in ids}
    found = None
    if head is not None:
        spare = [i for i in range(len(head)) if i not in tokenizer]
        suspects = sorted({*tokenizer.special_token_ids, *impossible, *unreachable} & {*range(len(head))})
        found = under_trained(head, [*suspects, *spare])
    glitches = [i for i in found or () if i in tokenizer and i not in tokenizer.special_token_ids]
    return VocabularyFigures(
        vocab_size=tokenizer.vocab_size,
        unused=sum(not used[i] for i in entries),
        unreachable=len(unreachable),
        partial=partial,
        examples=tuple(texts[i] for i in sorted(unreachable)[:10]),
        under_trained=None if found is None else len(glitches),
        under_trained_examples=tuple(tokenizer.token_bytes(i).decode("utf-8", "replace") for i in glitches[:20]),
    )


def _entries(tokenizer: Tokenizer) -> list[int]:
    return [i for i in range(tokenizer.vocab_size) if i in tokenizer and i not in tokenizer.special_token_ids]


def _unknown(tokenizer: Tokenizer) -> str | None:
    """The token for what the vocabulary lacks: what the model says, else what the folder says."""
    model = tokenizer.definition.spec.get("model") or {}
    if model.get("unk_token") is not None:
        return str(model["unk_token"])
    if isinstance(model.get("unk_id"), int):
        return str(model["vocab"][model["unk_id"]][0])
    return token_text(tokenizer.definition.config.get("unk_token"))
