"""Functions a model may call, and the calls it makes, as OpenAI writes them. Knows no grammar and no template."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lmworks.protocol.wire import WireRequest, WireResponse

ToolMode = Literal["none", "auto", "required"]
"""Whether the model may call a tool, must, or must not."""

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionDefinition(WireRequest):
    """One function: its name, what it is for, and a JSON Schema of its arguments."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(WireRequest):
    """A tool of the only kind there is."""

    type: Literal["function"]
    function: FunctionDefinition

    def to_template(self) -> dict[str, Any]:
        """The mapping a chat template sees."""
        return self.model_dump(exclude_none=True)


class NamedFunction(WireRequest):
    """A function by name."""

    name: FunctionName


class NamedTool(WireRequest):
    """A tool by name."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(WireRequest):
    """Some of the tools, which the model may call or must."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class AllowedToolsChoice(WireRequest):
    """OpenAI's `allowed_tools` form of `tool_choice`."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class FunctionCall(WireResponse):
    """A function's name and its arguments as JSON text; a stream's later pieces have arguments alone."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"name"})

    name: str | None = None
    arguments: str


class ToolCall(WireResponse):
    """One call of a message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ToolCallDelta(WireResponse):
    """What a chunk adds to a call: its id and name first, then pieces of its arguments."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"id", "type"})

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall
