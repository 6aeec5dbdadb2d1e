"""Token ids to text as they arrive. Knows no request and no stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from lmworks.tokenization.spaces import clean_up, settled
from lmworks.tokenization.tokenizer import Tokenizer


class StreamingDetokenizer:
    """Emits text as soon as its characters are complete.

    The pieces joined are exactly `tokenizer.decode` of all ids, however they were chunked.

    Args:
        tokenizer: whose ids arrive.
        skip_special_tokens: leave special tokens out of the text.
        continues: the ids go on from earlier text, so that a space before the first word is part of it.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset[int]()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = not continues
        """No token has come yet."""
        self._strip, self._left = tokenizer.strip if not continues else ("", 0)
        self._held = ""
        """Text whose spaces may have to go."""

    def add(self, ids: Sequence[int]) -> str:
        """The text that these ids complete; possibly empty."""
        raw = []
        for token_id in ids:
            if token_id in self._skipped or token_id not in self._tokenizer:
                continue
            raw.append(self._tokenizer.token_bytes(token_id, self._first))
            self._first = False
        return self._show(self._decoder.decode(b"".join(raw)), last=False)

    def finish(self) -> str:
        """What was held back; call it once, at the end."""
        return self._show(self._decoder.decode(b"", final=True), last=True)

    def _show(self, text: str, last: bool) -> str:
        while self._left and text:
            if not text.startswith(self._strip):
                self._left = 0
                break
            text, self._left = text.removeprefix(self._strip), self._left - 1
        if not self._tokenizer.cleans_up:
            return text
        self._held += text
        end = len(self._held) if last else settled(self._held)
        text, self._held = self._held[:end], self._held[end:]
        return clean_up(text)
