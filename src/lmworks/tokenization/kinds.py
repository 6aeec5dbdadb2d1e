"""The kinds of tokenizer that can be learned: what each is before training and how the library trains it.

`tokenizers` visits words in an order that differs from run to run. Whatever depends on it is decided here instead: the
alphabet by counting, the numbers of WordPiece's continuing letters, the order of Unigram's pieces and the scores that
it gives rare letters. Knows no corpus format and no file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import trainers

from lmworks.core.errors import TokenizerError
from lmworks.tokenization.byte_alphabet import BYTE_OF
from lmworks.tokenization.cuts import Cuts
from lmworks.tokenization.pretokenizers import BYTE_LEVEL

Kind = Literal["byte_bpe", "bpe", "unigram", "wordpiece", "character", "byte"]
UNKNOWN = "<unk>"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""How vocabularies of characters write a byte of a character that they lack."""
BASE_SIZE: dict[Kind, int] = {
    "byte_bpe": 256,
    "bpe": 257,
    "unigram": 257,
    "wordpiece": 1,
    "character": 257,
    "byte": 256,
}
"""Entries every vocabulary of the kind has besides its special tokens: bytes, the unknown token."""

_NEVER = 1 << 62
"""No pair is as frequent, so nothing is merged."""
_DECIMALS = 4
"""Of Unigram's scores. They are sums in an order that varies, which shows in their last digits."""
_UNIGRAM_STEP = 1e-4
"""By which the library's scores of letters that are no piece of their own differ, in the order it meets them."""

Texts = Callable[[], Iterator[str]]
"""Starts a new pass over the texts."""


def train_spec(kind: Kind, texts: Texts, vocab_size: int, special_tokens: Sequence[str], cuts: Cuts) -> dict[str, Any]:
    """Learn a vocabulary.

    Args:
        kind: how it is learned and applied.
        texts: starts a pass over the texts; kinds of characters make two, WordPiece three.
        vocab_size: entries at most, special tokens included.
        special_tokens: by id, from 0.
        cuts: where text is cut before merging.

    Returns:
        The content of `tokenizer.json`, without a post-processor.

    Raises:
        TokenizerError: `vocab_size` is too small for the kind.
    """
    least = len(special_tokens) + BASE_SIZE[kind]
    if vocab_size < least:
        raise TokenizerError(f"vocab_size {vocab_size} is too small for {kind}", f"Give at least {least}")
    return _KINDS[kind](texts, vocab_size, list(special_tokens), cuts)


def _byte_bpe(texts: Texts, vocab_size: int, special: list[str], cuts: Cuts, min_frequency: int = 2) -> dict[str, Any]:
    """Sennrich et al., 2016 (arXiv:1508.07909), over bytes: nothing is unknown."""
    backend = _backend({"type": "BPE", "vocab": {}, "merges": []}, cuts.as_bytes, BYTE_LEVEL)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(BYTE_OF),
        min_frequency=min_frequency, show_progress=False,
    )  # fmt: skip
    return _trained(backend, texts, trainer)


def _byte(texts: Texts, vocab_size: int, special: list[str], cuts: Cuts) -> dict[str, Any]:
    """The 256 bytes and nothing learned (ByT5, arXiv:2105.13626)."""
    return _byte_bpe(texts, len(special) + 256, special, cuts, min_frequency=_NEVER)


def _bpe(texts: Texts, vocab_size: int, special: list[str], cuts: Cuts, min_frequency: int = 2) -> dict[str, Any]:
    """Over characters; those that are rare are bytes."""
    fixed = [*special, UNKNOWN, *BYTES]
    room = vocab_size - len(fixed)
    letters = frequent_characters(texts(), room if min_frequency == _NEVER else room // 2)
    model = {"type": "BPE", "vocab": {UNKNOWN: 0}, "merges": [], "unk_token": UNKNOWN, "byte_fallback": True}
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=fixed, initial_alphabet=letters, limit_alphabet=len(letters),
        min_frequency=min_frequency, show_progress=False,
    )  # fmt: skip
    return _with_plain_bytes(_trained(_backend(model, cuts.as_text, decoder), texts, trainer))


def _character(texts: Texts, vocab_size: int, special: list[str], cuts: Cuts) -> dict[str, Any]:
    """The most frequent characters, and bytes for the others."""
    return _bpe(texts, vocab_size, special, cuts, min_frequency=_NEVER)


def _wordpiece(texts: Texts, vocab_size: int, special: list[str], cuts: Cuts) -> dict[str, Any]:
    """BERT's (arXiv:1810.04805): words in pieces of which the later ones begin with `##`; spaces are not kept."""
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                  "strip_accents": False, "lowercase": False}  # fmt: skip
    model = {"type": "WordPiece", "vocab": {UNKNOWN: 0}, "unk_token": UNKNOWN, "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 100}  # fmt: skip
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": False}
    backend = _backend(model, cuts.words, decoder, normalizer)
    fixed = [*special, UNKNOWN]
    letters = [c for c in frequent_characters(texts(), (vocab_size - len(fixed)) // 4) if not c.isspace()]
    settings: dict[str, Any] = {"special_tokens": fixed, "initial_alphabet": letters, "limit_alphabet": len(letters),
                                "continuing_subword_prefix": "##", "show_progress": False}  # fmt: skip
    backend.train_from_iterator(texts(), trainers.WordPieceTrainer(vocab_size=0, **settings))
    continuing = sorted(token for token in backend.get_vocab() if len(token) == 3 and token.startswith("##"))
    settings["special_tokens"] = [*fixed, *continuing]
    spec = _trained(backend, texts, trainers.WordPieceTrainer(vocab_size=vocab_size, min_frequency=2, **settings))
    return _special_only(spec, fixed)


def _unigram(texts: Texts, vocab_size: int, special: list[str], cuts: Cuts) -> dict[str, Any]:
    """Kudo, 2018 (arXiv:1804.10959): the likeliest pieces; characters that are rare are bytes."""
    fixed = [*special, UNKNOWN, *BYTES]
    letters = frequent_characters(texts(), (vocab_size - len(fixed)) // 2)
    rare = re.compile(f"[^{re.escape(''.join(letters))}]" if letters else "(?s:.)")
    model = {"type": "Unigram", "vocab": [[UNKNOWN, 0.0]], "unk_id": 0, "byte_fallback": True}
    mark = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
    backend = _backend(model, cuts.marked, mark)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=fixed, unk_token=UNKNOWN, show_progress=False
    )
    backend.train_from_iterator((rare.sub("\n", text) for text in texts()), trainer)
    spec: dict[str, Any] = json.loads(backend.to_str())
    found: list[tuple[str, float]] = [(piece, score) for piece, score in spec["model"]["vocab"]]
    learned = found[len(fixed) :]
    lowest = min((score for _, score in learned), default=0.0)
    near = lowest + _UNIGRAM_STEP * (len(letters) + 1)
    scores = {
        piece: round(lowest if len(piece) == 1 and score < near else score, _DECIMALS) for piece, score in learned
    }
    ordered = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    vocab = [[token, 0.0] for token in fixed] + [[piece, score] for piece, score in ordered]
    spec["model"] |= {"vocab": vocab, "unk_id": len(special), "byte_fallback": True}
    return _with_plain_bytes({**spec, "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, mark]}})


_KINDS: dict[Kind, Callable[[Texts, int, list[str], Cuts], dict[str, Any]]] = {
    "byte_bpe": _byte_bpe, "bpe": _bpe, "unigram": _unigram, "wordpiece": _wordpiece,
    "character": _character, "byte": _byte,
}  # fmt: skip


def frequent_characters(texts: Iterator[str], count: int) -> list[str]:
    """The `count` most frequent characters, of equally frequent ones the first by code point; in their order."""
    counts = np.zeros(0x110000, np.int64)
    for text in texts:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        if len(codes):
            found = np.bincount(codes)
            counts[: len(found)] += found
    best = np.argsort(-counts, kind="stable")[:count]
    return [chr(code) for code in sorted(best[counts[best] > 0])]


def _backend(
    model: dict[str, Any], cut: dict[str, Any], decoder: dict[str, Any], normalizer: dict[str, Any] | None = None
) -> tokenizers.Tokenizer:
    """A tokenizer that has learned nothing."""
    spec: dict[str, Any] = {"version": "1.0", "added_tokens": [], "normalizer": normalizer, "pre_tokenizer": cut,
            "post_processor": None, "decoder": decoder, "model": model}  # fmt: skip
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def _trained(backend: tokenizers.Tokenizer, texts: Texts, trainer: Any) -> dict[str, Any]:
    backend.train_from_iterator(texts(), trainer)
    spec: dict[str, Any] = json.loads(backend.to_str())
    return spec


def _with_plain_bytes(spec: dict[str, Any]) -> dict[str, Any]:
    """Bytes had to be special tokens for the trainer alone: afterwards they are entries like others."""
    return _special_only(spec, [t["content"] for t in spec["added_tokens"] if t["content"] not in BYTES])


def _special_only(spec: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {**spec, "added_tokens": [t for t in spec["added_tokens"] if t["content"] in names]}
