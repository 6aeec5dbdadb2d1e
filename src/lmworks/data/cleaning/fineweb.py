"""FineWeb's recipe after language identification (Penedo et al. 2024): Gopher, parts of C4, its own rules.

Knows no other preset's thresholds.
"""

from __future__ import annotations

from lmworks.data.cleaning.c4 import C4Lines
from lmworks.data.cleaning.gopher import GOPHER_QUALITY, GOPHER_REPETITION
from lmworks.data.cleaning.rules import Rule, TextStep

FINEWEB = "FineWeb, Penedo et al. 2024, section 3.6"
FINEWEB_QUALITY = (
    Rule("fineweb_empty", lambda m: len(m.filled_lines), low=1, source=FINEWEB),
    Rule("fineweb_line_ends", lambda m: m.line_ends, low=0.12, source=FINEWEB),
    Rule("fineweb_short_lines", lambda m: m.short_line_share, high=0.67, source=FINEWEB),
    Rule("fineweb_repeated_lines", lambda m: m.repeated_line_characters, high=0.01, source=FINEWEB),
    Rule("fineweb_newlines", lambda m: m.newlines_per_word, high=0.3, source=FINEWEB),
)
FINEWEB_STEPS: tuple[TextStep, ...] = (
    *GOPHER_REPETITION,
    *GOPHER_QUALITY,
    C4Lines(terminal_punctuation=False),
    *FINEWEB_QUALITY,
)
