"""C4's rules (Raffel et al. 2020, section 2.2): lines that are no prose go, pages that are no prose go whole.

Knows no other preset.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from lmworks.data.cleaning.lexicon import Words
from lmworks.data.cleaning.rules import Broken, Kept, Rule

C4 = "C4, Raffel et al. 2020, section 2.2"
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_WIDE_SPACE = re.compile(r"\s{2,}|[^\S ]")


@dataclass(frozen=True)
class C4Lines:
    """Take out lines; drop pages with boilerplate of developers or too few sentences.

    Args:
        terminal_punctuation: also take out lines that do not end a sentence; FineWeb does not.
    """

    terminal_punctuation: bool = True
    min_sentences: ClassVar[int] = 5
    min_words: ClassVar[int] = 3
    max_word: ClassVar[int] = 1000
    """Characters."""
    lorem_ipsum: ClassVar[Rule] = Rule("c4_lorem_ipsum", lambda m: m.text.lower().count("lorem ipsum"), 0, 0, C4)
    curly_bracket: ClassVar[Rule] = Rule("c4_curly_bracket", lambda m: m.text.count("{"), 0, 0, C4)
    sentences: ClassVar[Rule] = Rule("c4_sentences", lambda m: sentences(m.text.splitlines()), 5, source=C4)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those that drop a whole page."""
        return self.lorem_ipsum, self.curly_bracket, self.sentences

    def __call__(self, text: str) -> Kept | Broken:
        """Line by line, in the published order."""
        kept: list[str] = []
        removed: list[str] = []
        for raw in text.splitlines():
            line = raw.strip()
            # A citation may part the words that are looked for, and a line is no word longer than itself.
            if len(line) > self.max_word and any(len(word) > self.max_word for word in line.split()):
                removed.append("c4_long_word")
                continue
            few = len(line.split(None, self.min_words - 1)) < self.min_words
            if "[" in line:
                line = _CITATION.sub("", line)
            if self.terminal_punctuation and (not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")):
                removed.append("c4_terminal_punctuation")
                continue
            if few:
                removed.append("c4_words")
                continue
            lowered = line.lower()
            if "lorem ipsum" in lowered:
                return Broken(self.lorem_ipsum, lowered.count("lorem ipsum"))
            if "javascript" in lowered:
                removed.append("c4_javascript")
                continue
            if "{" in line:
                return Broken(self.curly_bracket, line.count("{"))
            if any(map(lowered.__contains__, _POLICY)):
                removed.append("c4_policy")
                continue
            kept.append(line)
        found = sentences(kept, enough=self.min_sentences)
        if found < self.min_sentences:
            return Broken(self.sentences, found)
        return Kept("\n".join(kept).strip(), tuple(removed))


def sentences(lines: list[str], *, enough: int | None = None) -> int:
    """Sentences of lines; a line holds one or more.

    Args:
        lines: what to look at.
        enough: count no further.
    """
    count = 0
    for line in lines:
        if enough is not None and count >= enough:
            break
        # White space wider than one space is a word of its own, and begins a sentence where one has ended.
        count += Words.of(_WIDE_SPACE.sub(" \0 ", line)).sentences
    return count
