"""What a request wants its text to be, as bounded text for the grammar library. Knows no tokens."""

from __future__ import annotations

import json
import re

from lmworks.core.errors import RequestError
from lmworks.core.sampling import StructuredOutputs
from lmworks.protocol.json_schema import check_pattern, checked_schema, schema_grammar

MAX_REGEX_CHARACTERS = 8 * 1024
MAX_GRAMMAR_CHARACTERS = 512 * 1024
MAX_RULES = 2000
MAX_CHOICES = 5000
_RULE = re.compile(r"^\s*[?!]?\w[\w-]*\s*(\[[^\]\n]*\])?\s*(\.\d+\s*)?(::=|:)", re.MULTILINE)
_QUOTED = re.compile(r"<state>|\n *1 \|")
_INLINED = re.compile(r"%json\s*")
_OPTIONS = '%llguidance { "no_forcing": true }\n'
"""Where only one text can follow, any tokens may spell it; else the library would call the tokenizer at every step."""


def grammar_source(outputs: StructuredOutputs, begins_text: bool) -> str:
    """A grammar for `llguidance`.

    Args:
        outputs: what is asked for.
        begins_text: the decoded text loses one space at its beginning, so the tokens must begin with one.

    Raises:
        RequestError: too large, or cannot be kept.
    """
    if outputs.grammar is not None:
        return _own_grammar(outputs.grammar, begins_text)
    start = 'start: " " body' if begins_text else "start: body"
    return f"{_OPTIONS}{start}\nbody: {_body(outputs)}\n"


def _body(outputs: StructuredOutputs) -> str:
    if outputs.regex is not None:
        return _regex(outputs.regex)
    if outputs.choice is not None:
        if len(outputs.choice) > MAX_CHOICES or not outputs.choice:
            raise RequestError(f"choice has {len(outputs.choice)} entries, not 1 to {MAX_CHOICES}")
        if sum(map(len, outputs.choice)) > MAX_GRAMMAR_CHARACTERS:
            raise RequestError(f"choice is longer than {MAX_GRAMMAR_CHARACTERS} characters in all", "Shorten it")
        return " | ".join(json.dumps(text, ensure_ascii=False) for text in outputs.choice)
    schema = {"type": "object"} if outputs.json_schema is None else checked_schema(outputs.json_schema)
    return f"%json {schema_grammar(schema)}"


def _regex(pattern: str) -> str:
    """A regular expression between Lark's slashes; the whole text matches, with or without anchors."""
    if len(pattern) > MAX_REGEX_CHARACTERS:
        problem = f"regex has {len(pattern)} characters, more than {MAX_REGEX_CHARACTERS}"
        raise RequestError(problem, "Shorten it, or use a grammar")
    check_pattern(pattern, "regex")
    from llguidance import regex_to_lark

    return f"/{regex_to_lark(pattern, 'dw')}/"


def _own_grammar(text: str, begins_text: bool) -> str:
    """Lark, EBNF as llama.cpp writes it (`root ::= …`), or the library's list of such that refer to each other."""
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise RequestError(f"grammar has {len(text)} characters, more than {MAX_GRAMMAR_CHARACTERS}", "Shorten it")
    grammars = _grammars(text) if text.lstrip().startswith("{") else [{"lark_grammar": text}]
    count = sum(len(_RULE.findall(grammar["lark_grammar"])) for grammar in grammars)
    if count > MAX_RULES:
        raise RequestError(f"grammar has {count} rules, more than {MAX_RULES}", "Use fewer rules")
    for grammar in grammars:
        _check_inlined(grammar["lark_grammar"])
    if begins_text:
        # Optional: a grammar may begin with a special token, which carries no space.
        grammars = [{"lark_grammar": 'start: " "? @own'}, {**grammars[0], "name": "own"}, *grammars[1:]]
    grammars = [{**grammar, "lark_grammar": _OPTIONS + _lark(grammar["lark_grammar"])} for grammar in grammars]
    return json.dumps({"grammars": grammars}, ensure_ascii=False)


def _lark(text: str) -> str:
    from llguidance.gbnf_to_lark import any_to_lark

    return any_to_lark(text) if "::=" in text else text


def _grammars(text: str) -> list[dict[str, str]]:
    """`{"grammars": [{"name": …, "lark_grammar": …}, …]}`: the first is the whole text's."""
    try:
        listed = json.loads(text)["grammars"]
        return [{key: grammar[key] for key in ("name", "lark_grammar") if key in grammar} for grammar in listed]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError(f"grammar is neither Lark nor a list of grammars: {error}") from None


def _check_inlined(text: str) -> None:
    """The schemas in `%json {…}`."""
    for number, found in enumerate(_INLINED.finditer(text)):
        try:
            schema, _ = json.JSONDecoder().raw_decode(text, found.end())
        except (ValueError, RecursionError) as error:
            raise RequestError(f"grammar: %json number {number} is not followed by JSON: {error}") from None
        checked_schema(schema, f"grammar: %json number {number}")


def own_words(error: str) -> str:
    """The library's message on one line, without the parser's state and the source it quotes."""
    return " ".join(_QUOTED.split(error)[0].split())[:300]
