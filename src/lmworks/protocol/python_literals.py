"""Python literals as JSON: what models write that call tools as `f(city='Paris', days=[1, 2], exact=True)`.

Knows no tools. Nothing is evaluated.
"""

from __future__ import annotations

import json
import re
from typing import NoReturn

_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<word>[A-Za-z_]\w*)|(?P<number>[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"""
    r"""|(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<mark>[\[\](){},:])""",
    re.DOTALL,
)
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_MARKS = {"(": "[", ")": "]"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|\n|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}


def python_to_json(text: str) -> str:
    """A literal of Python or JSON as JSON text; JSON stays as it was written.

    Raises:
        ValueError: it is neither.
    """
    text = text.strip()
    if not text:
        raise ValueError("empty")
    try:
        json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        pass
    else:
        return text
    written = re.sub(r",(?=[\]}])", "", "".join(_tokens(text)))
    try:
        value = json.loads(written, parse_constant=_refuse)
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"{text[at]!r} begins no literal")
        at, token = found.end(), found.group()
        match found.lastgroup:
            case "word":
                if token not in _WORDS:
                    raise ValueError(f"{token!r} is a name")
                tokens.append(_WORDS[token])
            case "number":
                tokens.append(_number(token))
            case "string":
                tokens.append(json.dumps(_ESCAPE.sub(_unescape, token[1:-1]), ensure_ascii=False))
            case "mark":
                tokens.append(_MARKS.get(token, token))
    return tokens


def _number(token: str) -> str:
    plain = token.replace("_", "").removeprefix("+")
    try:
        return str(int(plain))
    except ValueError:
        return json.dumps(float(plain), allow_nan=False)


def _unescape(found: re.Match[str]) -> str:
    code = found[1]
    if code[0] in "xuU" and len(code) > 1:
        point = int(code[1:], 16)
        if point > 0x10FFFF or 0xD800 <= point < 0xE000:
            raise ValueError(f"{found[0]} is no character")
        return chr(point)
    return _ESCAPED.get(code, code if code in "'\"\\" else found[0])
