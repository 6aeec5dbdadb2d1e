"""When a completion ends, and which of its text may be shown already. Knows no batch.

A completion ends at an end-of-sequence token, at a stop token, before a stop string, or at its length. A stop string
may be spread over several tokens, so text that could be its beginning is held back until the next token decides.
"""

from __future__ import annotations

from lmworks.core.generation import FinishReason
from lmworks.engine.scheduling.sequence import Sequence
from lmworks.tokenization import StreamingDetokenizer, Tokenizer


class StopChecker:
    """Watches one sequence, and notes in its `stop_reason` which stop token or string ended it.

    Args:
        sequence: whose parameters apply.
        eos_token_ids: end-of-sequence tokens.
        tokenizer: None gives no text.
    """

    def __init__(self, sequence: Sequence, eos_token_ids: frozenset[int], tokenizer: Tokenizer | None) -> None:
        params = sequence.params
        self._sequence = sequence
        self._eos = frozenset[int]() if params.ignore_eos else eos_token_ids
        self._ends = self._eos | frozenset(params.stop_token_ids)
        self._stop = params.stop
        self._include = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._detokenizer = None
        if tokenizer is not None:
            # After a marker or a source a text begins; after other text it goes on, its first space included.
            new = bool(sequence.source_token_ids) or sequence.prompt_token_ids[-1] in tokenizer.special_token_ids
            self._detokenizer = StreamingDetokenizer(tokenizer, params.skip_special_tokens, continues=not new)
        self._held = ""
        """Text not shown yet: it may be the beginning of a stop string."""
        self._exempt = 0
        """So much of it came before `min_tokens` were complete: no stop string ends there."""

    def add(self, token_id: int) -> tuple[str, FinishReason | None]:
        """Take note of the sequence's newest token.

        Returns:
            Text that may be shown now, and why the completion ends, if it does.
        """
        early = self._sequence.num_output_tokens <= self._min_tokens
        ended = token_id in self._ends and not early
        if self._detokenizer is not None and (self._include or not ended):
            self._held += self._detokenizer.add([token_id])
        if early:
            self._exempt = len(self._held)
        if ended or self._sequence.num_output_tokens >= self._sequence.max_tokens:
            text, stopped = self._flush()
            if ended and not stopped and token_id not in self._eos:
                self._sequence.stop_reason = token_id
            return text, "stop" if ended or stopped else "length"
        if (cut := self._find_stop()) is not None:
            return self._held[:cut], "stop"
        show = len(self._held) - self._partial_stop()
        text, self._held = self._held[:show], self._held[show:]
        self._exempt = max(0, self._exempt - show)
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
        """Where the text ends because of the stop string that is complete first.

        The first complete, so that the cut of text into tokens does not matter.
        """
        found = []
        for stop in self._stop:
            if (at := self._held.find(stop, max(0, self._exempt - len(stop) + 1))) >= 0:
                found.append((at + len(stop), at, stop))
        if not found:
            return None
        end, begin, self._sequence.stop_reason = min(found)
        return end if self._include else begin

    def _partial_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._held[-n:]) for s in self._stop)), 0)
