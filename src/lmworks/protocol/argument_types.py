"""The JSON that an argument written as bare text stands for, by its schema. Knows no format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lmworks.protocol.python_literals import python_to_json


def json_types(schema: Any) -> frozenset[str]:
    """The JSON types that a schema permits, as far as it says; empty if it does not."""
    if not isinstance(schema, Mapping):
        return frozenset()
    cases = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(cases, list):
        kinds = [json_types(case) for case in cases]
        return frozenset().union(*kinds) if all(kinds) else frozenset()
    if "type" in schema:
        kind = schema["type"]
        return frozenset(kind if isinstance(kind, list) else [kind])
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
    return frozenset(_type_of(value) for value in values)


def _type_of(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def typed_json(text: str, types: frozenset[str]) -> str:
    """An argument's text as JSON of one of these types; a string where it is nothing else, or nothing is known."""
    try:
        written = python_to_json(text)
        kind = _type_of(json.loads(written))
    except ValueError:
        return json.dumps(text, ensure_ascii=False)
    fits = not types or kind in types or (kind == "integer" and "number" in types)
    # Where text is expected, quotes are the model's; where nothing is known they make it text.
    return written if fits and (kind != "string" or not types) else json.dumps(text, ensure_ascii=False)
