"""Where a new tokenizer cuts text before it merges: digits, white space, scripts without spaces, identifiers.

A token never crosses a cut. Each choice is a part of one regular expression. Knows no vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lmworks.tokenization.pretokenizers import by_pattern

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that put no spaces between words."""


@dataclass(frozen=True)
class Cuts:
    """What stays together before merging. The defaults are the GPT-4 family's, with single digits."""

    max_digits: Literal[1, 3, 9] = 1
    """Longest run of digits."""
    cjk: Literal["mixed", "runs", "characters"] = "mixed"
    """Letters of scripts without spaces: like all letters, runs apart from other scripts, or one by one."""
    whitespace: Literal["runs", "characters"] = "runs"
    """Runs of spaces, as indentation has them, or one by one."""
    split_case: bool = False
    """Cut identifiers where their case turns: `parseHTTPHeader` is `parse`, `HTTP`, `Header`."""

    @property
    def pattern(self) -> str:
        """A regular expression whose matches are the pieces, together the whole text."""
        spaced = self.cjk == "mixed"
        letter = r"\p{L}" if spaced else rf"[\p{{L}}&&[^{_UNSPACED}]]"
        lower = r"[\p{L}&&[^\p{Lu}]]" if spaced else rf"[\p{{L}}&&[^\p{{Lu}}{_UNSPACED}]]"
        word = rf"(?:\p{{Lu}}+(?!\p{{Ll}})|\p{{Lu}}?{lower}+)" if self.split_case else rf"{letter}+"
        unspaced = [] if spaced else [rf"[{_UNSPACED}]" + ("+" if self.cjk == "runs" else "")]
        return "|".join(
            [
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
                rf"[^\r\n\p{{L}}\p{{N}}]?{word}",
                *unspaced,
                self._digits,
                r" ?[^\s\p{L}\p{N}]+[\r\n]*",
                *([r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"] if self.whitespace == "runs" else [r"\s"]),
            ]
        )

    @property
    def _digits(self) -> str:
        return r"\p{N}" if self.max_digits == 1 else rf"\p{{N}}{{1,{self.max_digits}}}"

    @property
    def as_bytes(self) -> dict[str, Any]:
        """The `pre_tokenizer` entry whose pieces are bytes written as letters."""
        return by_pattern(self.pattern)

    @property
    def as_text(self) -> dict[str, Any]:
        """The `pre_tokenizer` entry whose pieces are text, spaces included."""
        return _split(self.pattern)

    @property
    def marked(self) -> dict[str, Any]:
        """As `as_text`, with SentencePiece's mark for a space."""
        mark = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
        return {"type": "Sequence", "pretokenizers": [_split(self.pattern), mark]}

    @property
    def words(self) -> dict[str, Any]:
        """Words and marks without the spaces between them, as BERT has it."""
        return {"type": "Sequence", "pretokenizers": [{"type": "BertPreTokenizer"}, _split(self._digits)]}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
