"""When a completion ends, and which of its text may be shown already. Knows no batch.

A completion ends at an end-of-sequence token, at a stop token, before a stop string, or at its length. A stop string
may be spread over several tokens, so text that could be its beginning is held back until the next token decides.
"""

from __future__ import annotations

from lmworks.core.generation import FinishReason
from lmworks.engine.sequence import Sequence
from lmworks.tokenization import StreamingDetokenizer, Tokenizer


class StopChecker:
    """Watches one sequence.

    Args:
        sequence: whose parameters apply.
        eos_token_ids: end-of-sequence tokens; their text is never shown.
        tokenizer: None gives no text.
    """

    def __init__(self, sequence: Sequence, eos_token_ids: frozenset[int], tokenizer: Tokenizer | None) -> None:
        params = sequence.params
        self._sequence = sequence
        self._ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_token_ids)
        self._stop = params.stop
        self._detokenizer = None
        if tokenizer is not None:
            # After a marker or a source a text begins; after other text it goes on, its first space included.
            new = bool(sequence.source_token_ids) or sequence.prompt_token_ids[-1] in tokenizer.special_token_ids
            self._detokenizer = StreamingDetokenizer(tokenizer, continues=not new)
        self._held = ""
        """Text not shown yet: it may be the beginning of a stop string."""

    def add(self, token_id: int) -> tuple[str, FinishReason | None]:
        """Take note of the sequence's newest token.

        Returns:
            Text that may be shown now, and why the completion ends, if it does.
        """
        ended = token_id in self._ends
        if self._detokenizer is not None and not ended:
            self._held += self._detokenizer.add([token_id])
        full = self._sequence.num_output_tokens >= self._sequence.max_tokens
        if ended or full:
            text, stopped = self._flush()
            return text, "stop" if ended or stopped else "length"
        if (cut := self._find_stop()) is not None:
            return self._held[:cut], "stop"
        show = len(self._held) - self._partial_stop()
        text, self._held = self._held[:show], self._held[show:]
        return text, None

    def abort(self) -> str:
        """What was held back, when the completion is cut off."""
        return self._flush()[0]

    def _flush(self) -> tuple[str, bool]:
        """All text that is left, up to a stop string if there is one."""
        if self._detokenizer is not None:
            self._held += self._detokenizer.finish()
        cut = self._find_stop()
        return self._held[:cut], cut is not None

    def _find_stop(self) -> int | None:
        """Where the stop string begins that is complete first, so that the cut of text into tokens does not matter."""
        found = [(at + len(s), at) for s in self._stop if (at := self._held.find(s)) >= 0]
        return min(found)[1] if found else None

    def _partial_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._held[-n:]) for s in self._stop)), 0)
