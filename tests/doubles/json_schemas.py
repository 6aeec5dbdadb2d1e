"""JSON Schemas to hold completions to: hand-written hard ones and generated ones, and a walk through a grammar."""

from __future__ import annotations

import random

import numpy as np

from lmworks.engine.grammar.constraint import Constraint
from lmworks.tokenization import Tokenizer

_NODE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["value", "next"],
    "additionalProperties": False,
}
_CLOSING = ((b'"',), (b"}", b"]"))
_CASE = {"type": "object", "additionalProperties": False}

HARD: list[dict] = [
    {"$defs": {"node": _NODE}, "$ref": "#/$defs/node"},
    {"type": "object", "properties": {"child": {"$ref": "#"}, "name": {"type": "string"}}, "required": ["name"]},
    {"$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}, "$ref": "#/$defs/tree"},
    {
        "$defs": {
            "expression": {
                "anyOf": [
                    {"type": "number", "minimum": -5, "maximum": 5},
                    {
                        **_CASE,
                        "properties": {
                            "op": {"enum": ["+", "*"]},
                            "left": {"$ref": "#/$defs/expression"},
                            "right": {"$ref": "#/$defs/expression"},
                        },
                        "required": ["op", "left", "right"],
                    },
                ]
            }
        },
        "$ref": "#/$defs/expression",
    },
    {
        "oneOf": [
            {**_CASE, "properties": {"kind": {"const": "circle"}, "r": {"type": "number"}}, "required": ["kind", "r"]},
            {**_CASE, "properties": {"kind": {"const": "box"}, "w": {"type": "integer"}}, "required": ["kind"]},
        ]
    },
    {"enum": ["", 'a "quoted" word', "line\nbreak", "naïve 😀", 1, -2.5, True, None, [1, {"a": []}], {"b": {}}]},
    {"const": {"deep": [{"er": ["x", None]}], "\\": "/"}},
    {"type": ["string", "null", "boolean"], "maxLength": 3},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "minItems": 2},
    {"type": "array", "items": {"enum": [1, 2]}, "minItems": 3, "maxItems": 5},
    {"type": "object", "patternProperties": {"^x_[a-z]{1,3}$": {"type": "integer"}}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
    {"type": "object", "required": ["a b", "ü"], "additionalProperties": {"type": "null"}},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "pattern": "cat|dog", "maxLength": 8},
    {"type": "string", "minLength": 2, "maxLength": 2},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "ipv6"},
    {"type": "string", "format": "email"},
    {"type": "string", "format": "hostname"},
    {"type": "string", "format": "duration"},
    {"type": "integer", "minimum": -3, "exclusiveMaximum": 1000},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
    {"type": "number", "exclusiveMinimum": 0.25, "maximum": 0.5},
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "string"}}, "required": ["b"]},
        ]
    },
    {"type": "object", "properties": {"not": {"type": "null"}, "if": {"type": "null"}, "$ref": {"type": "null"}}},
    {"items": {"type": "object", "properties": {"x": True, "y": False}}, "type": "array", "maxItems": 2},
    {"type": "integer", "format": "int32", "uniqueItems": False, "title": "T", "description": "D", "default": 1},
]


def generated(seed: int) -> dict:
    """A random schema: objects and arrays within each other, unions, enums, references, bounds."""
    rng = random.Random(seed)
    definitions = {f"d{i}": _value(rng, depth=2, references=()) for i in range(rng.randrange(3))}
    schema = _value(rng, depth=0, references=tuple(definitions))
    return {**schema, "$defs": definitions} if definitions else schema


def _value(rng: random.Random, depth: int, references: tuple[str, ...]) -> dict:
    simple = ["string", "integer", "number", "enum", "bounded", "pattern", "format", "boolean"]
    kinds = simple if depth >= 3 else [*simple, *["object"] * 8, *["array"] * 4, "anyOf", "anyOf", "map"]
    if references:
        kinds = [*kinds, "reference", "reference"]
    kind = rng.choice(kinds) if depth else rng.choice(["object", "object", "array", "anyOf", "map"])
    again = (rng, depth + 1, references)
    match kind:
        case "object":
            names = rng.sample(["id", "name", "tags", "a-b", "größe", "x y", "z"], rng.randrange(1, 5))
            properties = {name: _value(*again) for name in names}
            required = [name for name in names if rng.random() < 0.6]
            rest = {} if rng.random() < 0.3 else {"additionalProperties": False}
            return {"type": "object", "properties": properties, "required": required, **rest}
        case "array":
            low = rng.randrange(3)
            return {"type": "array", "items": _value(*again), "minItems": low, "maxItems": low + rng.randrange(3)}
        case "map":
            return {"type": "object", "additionalProperties": _value(*again)}
        case "anyOf":
            return {"anyOf": [_value(*again) for _ in range(rng.randrange(2, 4))]}
        case "reference":
            return {"$ref": f"#/$defs/{rng.choice(references)}"}
        case "enum":
            return {"enum": rng.sample(["red", "green", "", 'q"', 1, 2.5, None, True], rng.randrange(1, 5))}
        case "bounded":
            low = rng.randrange(-100, 100)
            return {"type": rng.choice(["integer", "number"]), "minimum": low, "maximum": low + rng.randrange(200)}
        case "pattern":
            return {"type": "string", "pattern": rng.choice(["^[a-z]+$", "^(foo|bar)[0-9]?$", "^[xyz]{2}$", "^$"])}
        case "format":
            return {"type": "string", "format": rng.choice(["date", "uuid", "ipv4", "email"])}
        case "string":
            return {"type": "string"} if rng.random() < 0.5 else {"type": "string", "maxLength": rng.randrange(6)}
        case _:
            return {"type": kind}


def walk(constraint: Constraint, tokenizer: Tokenizer, seed: int, limit: int = 4000, closing: str = "") -> list[int]:
    """Tokens of a model with random logits, which grows tired of what can be ended; the end is not among them.

    Text without quotes ends with `closing`.
    """
    rng = np.random.default_rng(seed)
    count = constraint.mask().numel() * 32
    quotes, brackets = (np.array([tokenizer.token_bytes(i)[-1:] in c for i in range(count)]) for c in _CLOSING)
    ends = set(tokenizer.eos_token_ids)
    tokens: list[int] = []
    while len(tokens) < limit:
        allowed = np.flatnonzero(np.unpackbits(constraint.mask().numpy().view(np.uint8), bitorder="little"))
        assert len(allowed), "a constraint always allows something"
        in_string = len(allowed) > 60
        preferred = [i for i in allowed if (quotes if in_string else brackets)[i] or i in ends]
        if closing and in_string and rng.random() < 0.2:
            for token in tokenizer.encode(closing):
                tokens += [token] if constraint.accept(token) else []
            continue
        tired = preferred and rng.random() < 0.1 + len(tokens) / 400
        token = int(rng.choice(preferred if tired else allowed))
        assert constraint.accept(token), "what the mask allows is accepted"
        if token in ends:
            return tokens
        tokens.append(token)
    raise AssertionError(f"no end after {limit} tokens: {tokenizer.decode(tokens)[-200:]}")
