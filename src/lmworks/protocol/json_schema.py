"""Which JSON Schemas a completion can be held to, and the place of what it cannot. Knows no grammar library.

A schema arrives with a request, so it is bounded before anything descends into it, and what could not be kept is
refused rather than ignored. Kept: `type`, `enum`, `const`, `anyOf`, `oneOf` (where its cases exclude each other by
type or by a constant), `allOf`, `$ref` within the schema, objects (`properties`, `required`, `additionalProperties`,
`patternProperties`, `minProperties`, `maxProperties`), arrays (`items`, `prefixItems`, `minItems`, `maxItems`), numbers
(`minimum`, `maximum`, `exclusive…`, `multipleOf`), strings (`minLength`, `maxLength`, `pattern`, `format`).

Two things are not enforced: that a name which is not among `properties` comes only once (so `minProperties` may count
it twice), and keywords that JSON Schema does not define. Properties come in the order of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lmworks.core.errors import RequestError

Schema = dict[str, Any]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 64
MAX_REFERENCES = 2000
MAX_PROPERTIES = 2000
"""Of one object; compilation takes time quadratic in it."""
WHITESPACE = r"( |\n {0,16}|\n\t{0,8})"
"""At most once at each place where JSON permits whitespace: one space, or one line break with its indentation.

A small model that keeps choosing whitespace gets on with the value all the same."""
MAX_MULTIPLE = 10_000
"""Divisibility is a state for each remainder."""

UNSUPPORTED = {"not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames"}
UNSUPPORTED |= {"dependencies", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties"}
FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
_LEAP_YEAR = r"(\d\d(0[48]|[2468][048]|[13579][26])|([02468][48]|[2468]0|[13579][26])00)"
_YEAR = r"([1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])"
_DATE = (
    rf"({_LEAP_YEAR}-02-29|{_YEAR}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])"
    r"|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8])))"
)
_DATES = {"date": f"^{_DATE}$", "date-time": f"^{_DATE}[Tt]"}
"""The grammar library lets February have 29 days in every year."""
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems")


def checked_schema(schema: str | Schema | bool, place: str = "json_schema", lenient: bool = False) -> Schema | bool:
    """A schema within our bounds, as a value.

    Args:
        schema: a JSON Schema, as text or as a value.
        place: where it stands in the request, for messages.
        lenient: leave out keywords and formats that cannot be kept instead of refusing them.

    Raises:
        RequestError: the schema is too large or cannot be kept; the message names the place.
    """
    if isinstance(schema, str):
        schema = _parse(schema, place)
    if not isinstance(schema, (dict, bool)):
        raise RequestError(f"{place} must be an object or a boolean", "Send a JSON Schema")
    _check_depth(schema, place)
    size = len(json.dumps(schema, ensure_ascii=False))
    if size > MAX_BYTES:
        raise RequestError(f"{place} has {size} characters, more than {MAX_BYTES}", "Make the schema smaller")
    return _clean(schema, schema, place, lenient, [0])


def schema_grammar(schema: Schema | bool) -> str:
    """A checked schema as what follows `%json` in a grammar.

    Raises:
        RequestError: nothing satisfies it.
    """
    if schema is False:
        raise RequestError("json_schema is false, which nothing satisfies", "Send a schema that permits something")
    options = {"whitespace_pattern": WHITESPACE}
    return json.dumps({**(schema if isinstance(schema, dict) else {}), "x-guidance": options}, ensure_ascii=False)


def check_pattern(pattern: str, place: str) -> None:
    """Refuse a regular expression that ends in the midst of an escape: the library would leave that out.

    Raises:
        RequestError: it does.
    """
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        problem = f"{place} ends with a backslash that escapes nothing: {pattern[-40:]!r}"
        raise RequestError(problem, "Write a backslash twice")


def _parse(text: str, place: str) -> Any:
    if len(text) > MAX_BYTES:
        raise RequestError(f"{place} has {len(text)} characters, more than {MAX_BYTES}", "Make the schema smaller")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{place} is not JSON: {error}", "Send a JSON Schema") from None


def _check_depth(value: Any, place: str) -> None:
    """Level by level, so that depth costs no stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        if not (level := [child for parent in level for child in _children(parent)]):
            return
    raise RequestError(f"{place} is nested deeper than {MAX_DEPTH} levels", "Use $defs and $ref to flatten it")


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value


def _clean(schema: Any, root: Schema | bool, place: str, lenient: bool, references: list[int]) -> Schema | bool:
    """The schema without what says nothing, or a refusal at its place."""
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise RequestError(f"{place} must be an object or a boolean, not {json.dumps(schema)[:40]}")
    clean: Schema = {}
    for key, value in schema.items():
        where = f"{place}/{key}"
        if key in UNSUPPORTED or (key == "format" and value not in FORMATS):
            if lenient or value is False or (key == "format" and not _about_strings(schema)):
                continue
            _refuse(key, value, where)
        if key in _NAMED:
            value = _object(value, where)
            if len(value) > MAX_PROPERTIES:
                raise RequestError(f"{where} has {len(value)} entries, more than {MAX_PROPERTIES}")
            if key == "patternProperties":
                for pattern in value:
                    check_pattern(pattern, where)
            clean[key] = {k: _clean(v, root, f"{where}/{k}", lenient, references) for k, v in value.items()}
        elif key in _LISTED or (key == "items" and isinstance(value, list) and _has_tuples(root)):
            if not isinstance(value, (list, tuple)):
                raise RequestError(f"{where} must be a list of schemas")
            clean[key] = [_clean(v, root, f"{where}/{i}", lenient, references) for i, v in enumerate(value)]
        elif key in _SINGLE:
            if isinstance(value, list):
                raise RequestError(f"{where} is a list", "Use prefixItems for the elements of a tuple")
            clean[key] = _clean(value, root, where, lenient, references)
        elif key in ("$ref", "$dynamicRef", "$recursiveRef"):
            references[0] += 1
            clean[key] = _reference(value, root, where, references[0])
        elif key == "multipleOf" and isinstance(value, int) and value > MAX_MULTIPLE:
            raise RequestError(f"{where} is {value}, more than {MAX_MULTIPLE}", "Use a smaller divisor")
        elif key != "x-guidance":
            if key == "pattern":
                check_pattern(str(value), where)
            clean[key] = value
    if isinstance(kind := clean.get("format"), str) and kind in _DATES and _about_strings(clean):
        clean["allOf"] = [*clean.get("allOf", []), {"type": "string", "pattern": _DATES[kind]}]
    return clean


def _has_tuples(root: Schema | bool) -> bool:
    """Whether `items` may be a list, as it may in drafts before 2020-12."""
    return isinstance(root, dict) and "2020" not in str(root.get("$schema", "2020"))


def _about_strings(schema: Mapping[str, Any]) -> bool:
    """Whether a `format` could say anything: on numbers it names a width."""
    kinds = schema.get("type", "string")
    return "string" in (kinds if isinstance(kinds, list) else [kinds])


def _refuse(key: str, value: Any, where: str) -> None:
    if key == "format":
        known = ", ".join(sorted(FORMATS))
        raise RequestError(f"{where}: the format {value!r} cannot be enforced", f"Use one of {known}, or a pattern")
    raise RequestError(f"{where}: the keyword {key!r} cannot be enforced", "Leave it out and check the answer yourself")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RequestError(f"{where} must be an object")
    return value


def _reference(value: Any, root: Schema | bool, where: str, count: int) -> str:
    """A reference into the schema itself that leads somewhere."""
    if count > MAX_REFERENCES:
        raise RequestError(f"{where} is reference number {count}, more than {MAX_REFERENCES}")
    if not isinstance(value, str) or not value.startswith("#"):
        raise RequestError(f"{where}: {value!r} points outside the schema", "Put what it means under $defs")
    target: Any = root
    for part in value[1:].split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and part.isdecimal() and int(part) < len(target):
            target = target[int(part)]
        elif isinstance(target, Mapping) and part in target:
            target = target[part]
        else:
            raise RequestError(f"{where}: {value!r} leads nowhere", "Define it under $defs")
    return value
