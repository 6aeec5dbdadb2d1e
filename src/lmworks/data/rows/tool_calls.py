"""Whether calls of tools fit the tools that a conversation declares, by their JSON Schemas. Knows no row type."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from lmworks.core.config import nearest
from lmworks.core.errors import require
from lmworks.core.messages import Message
from lmworks.core.registry import resolve
from lmworks.data.rows.values import RowFault

_RULE = "tool call"


def tool_faults(turns: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Iterator[tuple[RowFault, bool]]:
    """What is wrong with the calls of a conversation and the results that answer them.

    Args:
        turns: the whole conversation.
        tools: what it declares; without any, calls are only worth a look.

    Yields:
        The fault, and whether the row is useless by it.

    Raises:
        MissingExtraError: schemas are checked with the package jsonschema.
    """
    declared = dict(_declared(tools))
    open_calls: set[str] = set()
    for number, turn in enumerate(turns):
        if turn.tool_calls and turn.role != "assistant":
            yield RowFault(_RULE, f"turn {number} ({turn.role}) calls a tool; only the assistant can"), True
        for call in turn.tool_calls or ():
            if isinstance(call.get("id"), str):
                open_calls.add(call["id"])
            if tools:
                yield from ((RowFault(_RULE, f"turn {number} {text}"), True) for text in _call_faults(call, declared))
        if turn.tool_calls and not tools:
            yield RowFault("undeclared tools", f"turn {number} calls a tool, but the row declares none"), False
        if turn.role == "tool" and turn.tool_call_id is not None and turn.tool_call_id not in open_calls:
            yield RowFault(_RULE, f"turn {number} answers the call {turn.tool_call_id!r}, which nobody made"), True
    for tool in tools:
        if problem := _tool_fault(json.dumps(tool, sort_keys=True, default=str)):
            yield RowFault("tool schema", problem), True


def _declared(tools: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Names of functions and the schemas of their arguments."""
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            yield function["name"], function.get("parameters") or {}


def _call_faults(call: Mapping[str, Any], declared: Mapping[str, Any]) -> Iterator[str]:
    function = call.get("function", call)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        yield "calls a tool without a name"
        return
    if name not in declared:
        yield f"calls {name!r}, which is not declared{nearest(name, list(declared))}"
        return
    arguments = function.get("arguments", {})
    if not isinstance(arguments, Mapping):
        yield f"calls {name!r} with {arguments!r}, which is no JSON object"
        return
    schema = json.dumps(declared[name], sort_keys=True, default=str)
    if _schema_fault(schema) is None:
        try:
            errors = list(_validator(schema).iter_errors(dict(arguments)))
        except (resolve("referencing.exceptions:Unresolvable"), RecursionError) as failure:
            reason = "it refers to itself without end" if isinstance(failure, RecursionError) else str(failure)
            yield f"calls {name!r}, whose parameters cannot be checked: {reason}"
            return
        for error in errors:
            place = f"{'.'.join(map(str, error.absolute_path))}: " if error.absolute_path else ""
            yield f"calls {name!r} with wrong arguments: {place}{error.message}"


@lru_cache(maxsize=1024)
def _tool_fault(tool: str) -> str | None:
    """Why a tool, given as JSON, is no declaration of a function."""
    value = json.loads(tool)
    function = value.get("function", value)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return "a tool has no function with a name"
    if fault := _schema_fault(json.dumps(function.get("parameters") or {}, sort_keys=True)):
        return f"the parameters of {function['name']!r} are no JSON Schema: {fault}"
    return None


@lru_cache(maxsize=1024)
def _schema_fault(schema: str) -> str | None:
    require("jsonschema", "data")
    value = json.loads(schema)
    try:
        resolve("jsonschema:Draft202012Validator").check_schema(value)
    except resolve("jsonschema:SchemaError") as error:
        return str(error.message)
    return None


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    """Of a schema, which may refer to parts of itself; an empty registry keeps it from asking other hosts."""
    registry = resolve("referencing:Registry")()
    return resolve("jsonschema:Draft202012Validator")(json.loads(schema), registry=registry)
