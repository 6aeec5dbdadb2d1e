"""`POST /v1/responses`: the request. Knows no template and no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from lmworks.core.sampling import SamplingParams, StructuredOutputs
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.response_input import ITEM_SCHEMA, InputItem, Item, read_items
from lmworks.protocol.sampling import UNSUPPORTED_EXTRAS, SamplingFields
from lmworks.protocol.structured import Schema
from lmworks.protocol.tools import FunctionDefinition, FunctionName, Tool, ToolMode
from lmworks.protocol.wire import WireRequest

MAX_ITEMS = 10_000
"""Items of one request."""


class FunctionTool(WireRequest):
    """A function, its fields beside its type."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def to_tool(self) -> Tool:
        """In the form of chat completions."""
        return Tool(type="function", function=FunctionDefinition(**self.model_dump(exclude={"type"})))


class NamedChoice(WireRequest):
    """A function that must be called."""

    type: Literal["function"]
    name: FunctionName


class AllowedChoice(WireRequest):
    """Some of the tools, which the model may call or must."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1)]


def _tool_choice(value: object) -> object:
    if value is None or value in ("none", "auto", "required"):
        return value
    if isinstance(value, dict) and value.get("type") == "function":
        return NamedChoice.model_validate(value)
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        return AllowedChoice.model_validate(value)
    raise ValueError("a tool choice is 'none', 'auto', 'required', or an object that names a function")


class TextFormat(WireRequest):
    """What the answer's text must be."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    json_schema: Annotated[Schema | None, Field(alias="schema")] = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(WireRequest):
    """How the answer's text shall be."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """Accepted; models have no such switch."""


class ReasoningConfig(WireRequest):
    """How the model shall think."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: str | None = None
    """Accepted: thoughts are given whole."""


def _input(value: object) -> list[Item]:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if isinstance(value, list) and all(isinstance(item, dict) for item in value) and len(value) <= MAX_ITEMS:
        return value
    raise ValueError(f"the input is a string, or a list of at most {MAX_ITEMS} objects")


class ResponsesRequest(SamplingFields):
    """The body of `POST /v1/responses`."""

    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **UNSUPPORTED_EXTRAS,
        "background": (False,),
        "conversation": (),
        "prompt": (),
        "n": (1,),
        "use_beam_search": (False,),
        "logprobs": (False,),
    }

    input: Annotated[
        list[Item],
        PlainValidator(_input),
        WithJsonSchema(
            {"anyOf": [{"type": "string"}, {"type": "array", "items": ITEM_SCHEMA, "maxItems": MAX_ITEMS}]},
            mode="validation",
        ),
    ] = []
    instructions: str | None = None
    """What stands before the conversation; not carried over from earlier responses."""
    previous_response_id: str | None = None
    max_output_tokens: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    tools: list[FunctionTool] | None = None
    tool_choice: Annotated[Any, AfterValidator(_tool_choice)] = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """`auto` drops the oldest items until the rest fits."""
    store: bool | None = None
    """Whether later requests may go on from this response; None means yes."""
    metadata: dict[str, str] | None = None
    user: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def with_logprobs(self) -> bool:
        """Whether log-probabilities are wanted."""
        return self.top_logprobs is not None or "message.output_text.logprobs" in (self.include or ())

    @property
    def tool_mode(self) -> ToolMode:
        """Whether the model may call a tool, must, or must not."""
        if isinstance(self.tool_choice, NamedChoice):
            return "required"
        if isinstance(self.tool_choice, AllowedChoice):
            return self.tool_choice.mode
        mode: ToolMode = self.tool_choice or ("auto" if self.tools else "none")
        return mode

    def items(self, history: Sequence[Item] = ()) -> list[InputItem]:
        """What was said before and the input, read; errors as in `read_items`."""
        return [*read_items(history), *read_items(self.input)]

    def offered_tools(self) -> list[Tool]:
        """The tools that the model may call in this answer.

        Raises:
            InvalidRequestError: a tool is named that is not among `tools`, or a call is required without any.
        """
        tools = [] if self.tool_mode == "none" else [tool.to_tool() for tool in self.tools or []]
        if self.tool_mode == "required" and not tools:
            raise InvalidRequestError("'tool_choice' needs 'tools'", "Send the tools", param="tool_choice")
        match self.tool_choice:
            case NamedChoice():
                names = {self.tool_choice.name}
            case AllowedChoice():
                names = {tool.name for tool in self.tool_choice.tools}
            case _:
                return tools
        if unknown := sorted(names - {tool.function.name for tool in tools}):
            raise InvalidRequestError(
                f"'tool_choice' names {unknown[0]!r}, which is not among 'tools'", "Name one of them",
                param="tool_choice",
            )  # fmt: skip
        return [tool for tool in tools if tool.function.name in names]

    def template_inputs(self) -> dict[str, Any]:
        """Switches for the chat template."""
        inputs = dict(self.chat_template_kwargs or {})
        if self.reasoning is not None and self.reasoning.effort is not None:
            inputs.setdefault("reasoning_effort", self.reasoning.effort)
            if self.reasoning.effort == "none":
                inputs.setdefault("enable_thinking", False)
        return inputs

    def structured(self) -> StructuredOutputs | None:
        """What the answer's text must be, or None for any text.

        Raises:
            InvalidRequestError: the schema or its name is missing.
        """
        asked = None if self.text is None else self.text.format
        if asked is None or asked.type == "text":
            return None
        if asked.type == "json_object":
            return StructuredOutputs(json_object=True)
        for param, value in (("text.format.name", asked.name), ("text.format.schema", asked.json_schema)):
            if value is None:
                raise InvalidRequestError(f"Missing required parameter: '{param}'", param=param)
        return StructuredOutputs(json_schema=asked.json_schema)

    def sampling_params(self) -> SamplingParams:
        """The engine's view of this request; errors as in `to_sampling_params`."""
        logprobs = (self.top_logprobs or 0) if self.with_logprobs else None
        return self.to_sampling_params(max_tokens=self.max_output_tokens, logprobs=logprobs)
