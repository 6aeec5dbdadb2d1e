"""One call of one tool as a grammar, in each of the four syntaxes. Knows no completion around it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import RequestError
from lmworks.protocol.argument_types import json_types
from lmworks.protocol.json_schema import checked_schema, schema_grammar
from lmworks.protocol.lark import LarkWriter
from lmworks.protocol.tool_formats import ToolFormat, XmlTags

_UNCHECKED_IN_TEXT = ("pattern", "format", "minLength", "maxLength")
_CASES = ("anyOf", "oneOf", "allOf", "$ref")


def call_rule(writer: LarkWriter, tool_format: ToolFormat, number: int, tool: Mapping[str, Any]) -> str:
    """Define a rule for calls of one tool; returns its name.

    Raises:
        RequestError: `strict` arguments cannot be kept to their schema in this format.
    """
    function = tool.get("function", tool)
    name, place = function["name"], f"tools[{number}].function.parameters"
    strict = bool(function.get("strict"))
    schema = checked_schema(function.get("parameters") or {"properties": {}}, place, lenient=not strict)
    if not isinstance(schema, dict):
        raise RequestError(f"{place} is {json.dumps(schema)}", "Describe an object")
    schema = {"type": "object", **schema}
    rule = f"call{number}"
    match tool_format.syntax:
        case "json":
            opening = f'{{"{tool_format.name_key}": {json.dumps(name)}, "{tool_format.arguments_key}": '
            body = f'{writer.literal(opening)} %json {schema_grammar(schema)} "}}"'
        case "named":
            before, _, after = tool_format.after_name.partition("{index}")
            index = "/[0-9]{1,3}/" if "{index}" in tool_format.after_name else ""
            marker = writer.literal(after + tool_format.arguments_marker)
            body = f"{writer.literal(name + before)} {index} {marker} %json {schema_grammar(schema)}"
        case "python":
            _check_plain(schema, place, strict)
            body = f'{writer.literal(name + "(")} {_keywords(writer, rule, schema)} ")"'
        case "xml":
            assert tool_format.tags is not None, "the xml syntax has tags"
            _check_plain(schema, place, strict)
            body = _tags(writer, rule, tool_format.tags, name, schema, place if strict else None)
    return writer.rule(rule, body)


def _check_plain(schema: Mapping[str, Any], place: str, strict: bool) -> None:
    """Arguments that are written one by one are kept to their own schemas, not to what the object says of them."""
    broken = [key for key in (*_CASES, "patternProperties", "minProperties", "maxProperties") if key in schema]
    if strict and broken:
        problem = f"{place}/{broken[0]} cannot be enforced on arguments that the model writes one by one"
        raise RequestError(problem, "List all arguments under properties, or leave strict out")


def _arguments(schema: Mapping[str, Any]) -> list[tuple[str, dict[str, Any] | bool, bool]]:
    """Name, schema and whether it must be there, of every argument; references lead where they led."""
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    properties, required = schema.get("properties", {}), schema.get("required", ())
    named = {**{key: {} for key in required}, **properties}
    return [
        (k, {**v, **shared} if isinstance(v, dict) else v, k in required) for k, v in named.items() if v is not False
    ]


def _keywords(writer: LarkWriter, rule: str, schema: Mapping[str, Any]) -> str:
    """`a=1, b="x"`: what must be there first, then what may."""
    arguments = _arguments(schema)
    written = [
        (writer.rule(f"{rule}_{i}", f"{writer.literal(name + '=')} {_value(value)}"), must)
        for i, (name, value, must) in enumerate(arguments)
    ]
    first = ' ", " '.join(name for name, must in written if must)
    optional = [name for name, must in written if not must]
    if first:
        return first + "".join(f' (", " {name})?' for name in optional)
    if not optional:
        return ""
    # Any of them, in order, commas between: what begins with the last, the last but one, and so on.
    begun = ""
    for i in range(len(optional) - 1, -1, -1):
        after = "".join(f' (", " {name})?' for name in optional[i + 1 :])
        begun = writer.rule(f"{rule}_from{i}", f"{optional[i]}{after}" + (f" | {begun}" if begun else ""))
    return f"{begun}?"


def _value(schema: dict[str, Any] | bool) -> str:
    """JSON is read as well as Python; truth values have Python's names in models' habits."""
    if json_types(schema) == {"boolean"} and isinstance(schema, dict) and not {"enum", "const"} & schema.keys():
        return '("True" | "False")'
    return f"%json {schema_grammar(schema)}"


def _tags(
    writer: LarkWriter, rule: str, tags: XmlTags, name: str, schema: Mapping[str, Any], strict_place: str | None
) -> str:
    """A tag for every argument, each on lines of its own, in the schema's order."""
    parts = [writer.literal(tags.name_begin + name + tags.name_end + "\n")]
    for i, (key, value, must) in enumerate(_arguments(schema)):
        gap = "\n" if tags.value_begin else ""
        opening = writer.literal(f"{tags.key_begin}{key}{tags.key_end}{gap}{tags.value_begin}{tags.pad}")
        place = None if strict_place is None else f"{strict_place}/properties/{key}"
        closed = _closed_value(writer, f"{rule}_{i}_value", tags.pad + tags.value_end, value, place)
        argument = writer.rule(f"{rule}_{i}", f'{opening} {closed} "\\n"')
        parts.append(argument if must else f"{argument}?")
    return " ".join([*parts, writer.literal(tags.call_end)])


def _closed_value(
    writer: LarkWriter, rule: str, closing: str, schema: dict[str, Any] | bool, strict_place: str | None
) -> str:
    """A value and its closing tag: text as it is, anything else as JSON."""
    if isinstance(schema, bool) or "string" not in json_types(schema):
        return f"%json {schema_grammar(schema)} {writer.literal(closing)}"
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if values:
        texts = (value if isinstance(value, str) else json.dumps(value) for value in values)
        return f"({' | '.join(map(writer.literal, texts))}) {writer.literal(closing)}"
    broken = [key for key in _UNCHECKED_IN_TEXT if key in schema]
    if strict_place and broken:
        problem = f"{strict_place}/{broken[0]} cannot be enforced on text that the model writes without quotes"
        raise RequestError(problem, "Leave it out, or leave strict out")
    return writer.up_to(rule, closing)
