"""A tokenizer's vocabulary as the grammar library reads it: the bytes of every token. Knows no grammar."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lmworks.tokenization import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class GrammarVocabulary:
    """Tokens as bytes; special tokens apart, which no text spells.

    Args:
        tokenizer: any kind.
        vocab_size: rows of the model's logits; those without a token are never allowed.
        eos_token_ids: tokens that end a completion.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer, self._vocab_size, self._eos_token_ids = tokenizer, vocab_size, eos_token_ids
        self._lock = threading.Lock()

    @property
    def tokens(self) -> LLTokenizer:
        """Built when first asked for: a trie of all tokens takes a second where there are 150,000."""
        with self._lock:
            return self._tokens

    @cached_property
    def marks_words(self) -> bool:
        """Whether the first token of a text loses a space that it has elsewhere."""
        tokenizer = self._tokenizer
        return tokenizer.strip[1] > 0 or any(
            tokenizer.token_bytes(i, first=True) != tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)
        )

    @cached_property
    def _tokens(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        ends = sorted(i for i in self._eos_token_ids if i < self._vocab_size)
        vocabulary: Any = _Bytes(self._tokenizer, self._vocab_size, ends)  # has what a `TokenizerWrapper` is asked for
        return LLTokenizer(vocabulary, self._vocab_size, eos_token=ends)


class _Bytes:
    """The attributes that `LLTokenizer` reads."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: list[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = ends[0]
        self.special_token_ids = sorted({*tokenizer.special_token_ids, *ends} & set(range(vocab_size)))
        special = set(self.special_token_ids)
        names = {tokenizer.token_id(t.content): t.content.encode() for t in tokenizer.special_tokens}
        self.tokens = [
            names.get(i, f"<[{i}]>".encode()) if i in special else tokenizer.token_bytes(i) for i in range(vocab_size)
        ]

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode())
