"""What a completion's text must be, in OpenAI's `response_format` and in vLLM's names. Knows no grammar."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from lmworks.core.sampling import StructuredOutputs
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.wire import WireRequest

Schema = dict[str, Any]


def _schema(value: object) -> object:
    if value is None or isinstance(value, str | dict):
        return value
    raise ValueError("a JSON Schema is an object, or its text")


SchemaOrText = Annotated[
    Any,
    AfterValidator(_schema),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}, {"type": "null"}]}, mode="validation"),
]


class JsonSchemaFormat(WireRequest):
    """A named JSON Schema."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    json_schema: Annotated[Schema | None, Field(alias="schema")] = None
    strict: bool | None = None
    """Accepted either way: the schema always holds."""


class ResponseFormat(WireRequest):
    """OpenAI's form: any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    object_schema: Annotated[Schema | None, Field(alias="schema")] = None
    """Of a `json_object`, as llama.cpp and others take it."""


class StructuredExtras(WireRequest):
    """vLLM's form; exactly one of these."""

    json_value: Annotated[SchemaOrText, Field(alias="json")] = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StructuredFields(WireRequest):
    """All names under which a request may ask for structure."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredExtras | None = None
    guided_json: SchemaOrText = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    def structured(self) -> StructuredOutputs | None:
        """What the text must be, or None for any text.

        Raises:
            InvalidRequestError: two things are asked for at once, or a schema is missing.
        """
        asked: dict[str, StructuredOutputs] = {}
        if self.response_format is not None and self.response_format.type != "text":
            asked["response_format"] = _of_response_format(self.response_format)
        extras = self.structured_outputs or StructuredExtras()
        values = {
            "structured_outputs.json": ("json_schema", extras.json_value),
            "structured_outputs.regex": ("regex", extras.regex),
            "structured_outputs.choice": ("choice", extras.choice),
            "structured_outputs.grammar": ("grammar", extras.grammar),
            "structured_outputs.json_object": ("json_object", extras.json_object or None),
            "guided_json": ("json_schema", self.guided_json),
            "guided_regex": ("regex", self.guided_regex),
            "guided_choice": ("choice", self.guided_choice),
            "guided_grammar": ("grammar", self.guided_grammar),
        }
        for param, (kind, value) in values.items():
            if value is not None:
                if value == []:
                    raise InvalidRequestError(f"{param!r} is empty", "Give at least one choice", param=param)
                asked[param] = StructuredOutputs(**{kind: tuple(value) if isinstance(value, list) else value})
        if len(asked) > 1:
            first, second, *_ = asked
            raise InvalidRequestError(f"{first!r} and {second!r} exclude each other", "Leave one out", param=second)
        return next(iter(asked.values()), None)


def _of_response_format(asked: ResponseFormat) -> StructuredOutputs:
    if asked.type == "json_object":
        schema = asked.object_schema
        return StructuredOutputs(json_object=True) if schema is None else StructuredOutputs(json_schema=schema)
    if asked.json_schema is None:
        param = "response_format.json_schema"
        raise InvalidRequestError(f"Missing required parameter: {param!r}", param=param)
    return StructuredOutputs(json_schema=asked.json_schema.json_schema or {"type": "object"})
