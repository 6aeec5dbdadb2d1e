"""Token ids to text as they arrive. Knows no request and no stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from lmworks.tokenization.tokenizer import Tokenizer


class StreamingDetokenizer:
    """Emits text as soon as its characters are complete.

    The pieces joined are exactly `tokenizer.decode` of all ids, however they were chunked.

    Args:
        tokenizer: whose ids arrive.
        skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset[int]()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, ids: Sequence[int]) -> str:
        """The text that these ids complete; possibly empty."""
        return self._decoder.decode(b"".join(self._tokenizer.token_bytes(i) for i in ids if i not in self._skipped))

    def finish(self) -> str:
        """What was held back; call it once, at the end."""
        return self._decoder.decode(b"", final=True)
