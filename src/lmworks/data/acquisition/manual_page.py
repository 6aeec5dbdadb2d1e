"""The text of a manual page in troff's man and mdoc macros, without its commands and escapes. Knows no files.

See man(7), mdoc(7) and groff_char(7). Of macros that a page defines, and of conditions, nothing is run.
"""

from __future__ import annotations

import re

from lmworks.data.acquisition.wrapped_lines import unwrapped

_HEADINGS = frozenset(("SH", "SS", "Sh", "Ss"))
_PARAGRAPHS = frozenset(("PP", "P", "LP", "Pp", "sp", "Sp", "RS", "RE", "Bl", "El"))
_BREAKS = frozenset(("br", "HP", "ti"))
_FONTS = frozenset(("B", "I", "R", "SM", "SB"))
_ALTERNATING = frozenset(("BR", "RB", "BI", "IB", "IR", "RI"))
_VERBATIM = frozenset(("nf", "EX", "Vb", "Bd", "CS"))
_FILLED = frozenset(("fi", "EE", "Ve", "Ed", "CE"))
_INLINE = frozenset((
    "Ad", "An", "Ar", "Aq", "Bq", "Brq", "Cd", "Cm", "D1", "Dl", "Dq", "Dv", "Em", "Er", "Ev", "Fa", "Fl", "Fn", "Ft",
    "Ic", "In", "Li", "Lk", "Ms", "Mt", "Nd", "Nm", "Ns", "Oc", "Oo", "Op", "Ox", "Pa", "Pf", "Pq", "Ql", "Qq", "Sq",
    "St", "Sx", "Sy", "Ta", "Tn", "Ux", "Va", "Vt", "Xo", "Xc", "Xr", "OP",
))  # fmt: skip
"""Macros of mdoc whose arguments are text, and may be macros again."""
_BLOCKS = {"TS": "TE", "EQ": "EN", "PS": "PE"}
"""Input of other programs: tables, formulas and pictures."""

_CHARACTERS = {
    "em": "—", "en": "–", "hy": "-", "mi": "-", "bu": "•", "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘",
    "cq": "’", "co": "©", "rg": "®", "tm": "™", "rs": "\\", "ti": "~", "ha": "^", "ga": "`", "sl": "/", "bv": "|",
    "br": "|", "ul": "_", "ru": "_", "->": "→", "<-": "←", "<=": "≤", ">=": "≥", "!=": "≠", "+-": "±", "mu": "×",
    "de": "°", "pd": "∂", "*p": "π", "*b": "β", "at": "@", "sh": "#", "Do": "$", "or": "|", "lB": "[", "rB": "]",
    "lC": "{", "rC": "}", "la": "⟨", "ra": "⟩", "Fo": "«", "Fc": "»", "**": "*", "eq": "=", "pl": "+", "fm": "′",
    "ss": "ß", "12": "½", "14": "¼", "34": "¾", "sc": "§", "ps": "¶", "Po": "£", "Eu": "€", "Ye": "¥", "if": "∞",
}  # fmt: skip
_STRINGS = {"lq": "“", "rq": "”", "R": "®", "Tm": "™"}
_ESCAPE = re.compile(
    r"""\\(?:
    (?P<quoted>[hvwlLoxbDHSXZN])'[^'\n]{0,200}'                    # movements and lines, with an argument in quotes
    |[fgmMnkFsY](?:\([^\n]{2}|\[[^\]\n]{0,40}\]|[+-]?\d|[+-]?[^\n(\[])  # fonts, colors, registers, sizes
    |\*(?:\((?P<string2>[^\n]{2})|\[(?P<string>[^\]\n]{0,40})\]|(?P<string1>[^\n(\[]))
    |\((?P<character2>[^\n]{2})
    |\[(?P<character>[^\]\n]{0,40})\]
    |(?P<single>[^\n]))""",
    re.VERBOSE,
)
_GLUE = "\x01"
"""Stands for `\\c`: the next line goes on without a space."""
_SINGLE = {"e": "\\", "~": " ", "0": " ", "t": "\t", "c": _GLUE}
_SILENT = "&,/^|:%durpzEa{}!?)"
"""Escapes of nothing to see; one that troff does not know stands for its character."""
_COMMENT = re.compile(r"(?<!\\)(?:\\\\)*\\[\"#].*")
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|(\S+)')


def plain_text(source: str) -> str:
    """What a page says, each paragraph on one line, examples as they stand; empty where it only points to another."""
    page = _Page()
    for line in _lines(source):
        page.read(line)
    page.flush()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(page.done)).strip("\n")


def _lines(source: str) -> list[str]:
    """Lines without comments, definitions, conditions and what other programs would draw."""
    kept: list[str] = []
    end, depth = "", 0
    for line in source.splitlines():
        name = line[1:].split(None, 1)[0] if line[:1] in ".'" and line[1:].strip() else ""
        if end:
            if line.startswith(end):
                end = ""
        elif depth:
            depth += line.count("\\{") - line.count("\\}")
        elif name in ("de", "de1", "ig", "am"):
            end = ".."
        elif name in _BLOCKS:
            end = f".{_BLOCKS[name]}"
        elif name in ("if", "ie", "el", "while"):
            depth = max(line.count("\\{") - line.count("\\}"), 0)
        else:
            without = _COMMENT.sub("", line)
            if without.strip(".'") or not line:
                kept.append(without)
    return kept


class _Page:
    """Text of a page as its lines are read; `paragraph` is what has not come to its end."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._paragraph: list[str] = []
        self._verbatim = self._tag_follows = False

    def flush(self) -> None:
        """End the paragraph."""
        if self._paragraph:
            self.done.append(unwrapped(self._paragraph).replace(_GLUE, ""))
            self._paragraph = []

    def read(self, line: str) -> None:
        """Take one line of the source."""
        if line[:1] in (".", "'") and len(line) > 1:
            name, _, rest = line[1:].strip().partition(" ")
            self._command(name.removesuffix("\\}"), rest.strip())
        elif not line.strip():
            self._gap()
        else:
            self._text(_unescaped(line))

    def _gap(self) -> None:
        self.flush()
        self.done.append("")

    def _text(self, text: str) -> None:
        if self._verbatim:
            self.flush()
            self.done.append(text.rstrip())
            return
        if text[:1].isspace():  # troff breaks the line before one that begins with a space
            self.flush()
        if self._paragraph and self._paragraph[-1].endswith(_GLUE):
            self._paragraph[-1] = self._paragraph[-1][:-1] + text
        elif text.strip():
            self._paragraph.append(text)
        if self._tag_follows:
            self.flush()
            self._tag_follows = False

    def _command(self, name: str, rest: str) -> None:
        words = [_unescaped(quoted.replace('""', '"') or bare) for quoted, bare in _ARGUMENT.findall(rest)]
        if name in _HEADINGS:
            self._gap()
            self.done += [" ".join(words), ""]
        elif name in _PARAGRAPHS:
            self._gap()
        elif name in _BREAKS:
            self.flush()
        elif name == "TP":
            self.flush()
            self._tag_follows = True
        elif name in ("IP", "It", "Nd"):
            self.flush()
            if tag := " ".join(words[:1] if name == "IP" else _mdoc(words)).strip():
                self._text(tag)
                if name == "IP" and tag != "•":
                    self.flush()
        elif name in _FONTS:
            self._text(" ".join(words))
        elif name in _ALTERNATING:
            self._text("".join(words))
        elif name in _INLINE:
            self._text(" ".join(_mdoc([name, *words])))
        elif name in _VERBATIM or name in _FILLED:
            self.flush()
            self._verbatim = name in _VERBATIM


def _mdoc(words: list[str]) -> list[str]:
    """Arguments without the names of macros among them; of flags and names the marks that readers see."""
    text: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if word not in _INLINE:
            text.append(f"-{word}" if before == "Fl" else f"“{word}”" if before in ("Ql", "Dq", "Qq") else word)
    return text


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(_character, text)


def _character(found: re.Match[str]) -> str:
    string = found["string2"] or found["string"] or found["string1"]
    if string is not None:
        return _STRINGS.get(string, "")
    name = found["character2"] or found["character"]
    if name is not None:
        if re.fullmatch("u[0-9A-F]{4,5}", name):
            return chr(int(name[1:], 16))
        return _CHARACTERS.get(name, "")
    single = found["single"] or ""
    return _SINGLE.get(single, "" if single in _SILENT else single)
