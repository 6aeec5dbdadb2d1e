"""`POST /v1/chat/completions`: the request. Knows no template and no engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, ValidationError, WithJsonSchema

from lmworks.core.messages import Message
from lmworks.core.sampling import BeamSearchParams, SamplingParams
from lmworks.protocol.chat_messages import Messages
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.sampling import UNSUPPORTED_EXTRAS, SamplingFields
from lmworks.protocol.structured import StructuredFields
from lmworks.protocol.tools import AllowedToolsChoice, NamedTool, Tool, ToolMode
from lmworks.protocol.wire import field_path

TEMPLATE_NAMES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "generation_open",
     "generation_close"}
)  # fmt: skip
"""What `chat_template_kwargs` must not set: the request has fields of its own for it."""


def _tool_choice(value: object) -> str | NamedTool | AllowedToolsChoice | None:
    if value is None or value in ("none", "auto", "required"):
        return value if isinstance(value, str) else None
    if isinstance(value, dict) and value.get("type") in ("function", "allowed_tools"):
        form = NamedTool if value["type"] == "function" else AllowedToolsChoice
        try:
            return form.model_validate(value)
        except ValidationError as error:
            problem = error.errors()[0]
            raise ValueError(f"{field_path(problem['loc'])}: {problem['msg']}") from None
    raise ValueError("a tool choice is 'none', 'auto', 'required', or an object that names a function")


_NAMED = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
    "required": ["type", "function"],
}
ToolChoice = Annotated[
    str | NamedTool | AllowedToolsChoice | None,
    PlainValidator(_tool_choice),
    WithJsonSchema(
        {"anyOf": [{"enum": ["none", "auto", "required"]}, _NAMED, {"type": "object"}, {"type": "null"}]},
        mode="validation",
    ),
]


class ChatCompletionRequest(SamplingFields, StructuredFields):
    """The body of `POST /v1/chat/completions`."""

    UNSUPPORTED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **UNSUPPORTED_EXTRAS,
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "web_search_options": (),
        "chat_template": (),
    }

    messages: Messages
    max_tokens: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    """The current name of `max_tokens`; wins when both are given."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """A switch of the chat template, where it has one."""
    include_reasoning: bool | None = None
    """False leaves the reasoning out of the answer."""
    echo: bool | None = None
    """Begin the answer with the words of the message that it continues."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    """For templates of retrieval-augmented models."""

    def to_messages(self) -> list[Message]:
        """The conversation.

        Raises:
            InvalidRequestError: the message to be continued is not the assistant's.
        """
        if self.continue_final_message:
            if self.add_generation_prompt:
                param = "continue_final_message"
                problem = "'continue_final_message' and 'add_generation_prompt' exclude each other"
                raise InvalidRequestError(problem, "Set 'add_generation_prompt' to false", param=param)
            if self.messages[-1].role != "assistant" or self.messages[-1].tool_calls:
                problem = "'continue_final_message' needs a last message of the assistant's words"
                raise InvalidRequestError(problem, "Add one", param="messages")
        return [message.to_message() for message in self.messages]

    def template_inputs(self) -> dict[str, Any]:
        """What the chat template gets besides messages and tools.

        Raises:
            InvalidRequestError: `chat_template_kwargs` sets what is not its own.
        """
        given = self.chat_template_kwargs or {}
        if taken := sorted(TEMPLATE_NAMES & given.keys()):
            raise InvalidRequestError(
                f"'chat_template_kwargs' must not set {taken[0]!r}",
                "Use the request's own field",
                param="chat_template_kwargs",
            )
        inputs = dict(given)
        if self.reasoning_effort is not None:
            inputs.setdefault("reasoning_effort", self.reasoning_effort)
            if self.reasoning_effort == "none":
                inputs.setdefault("enable_thinking", False)
        if self.documents:
            inputs["documents"] = self.documents
        return inputs

    @property
    def tool_mode(self) -> ToolMode:
        """Whether the model may call a tool, must, or must not."""
        match self.tool_choice:
            case "none" | "auto" | "required":
                return self.tool_choice
            case NamedTool():
                return "required"
            case AllowedToolsChoice():
                return self.tool_choice.allowed_tools.mode
        return "auto" if self.tools else "none"

    def offered_tools(self) -> list[Tool]:
        """The tools that the model may call in this answer.

        Raises:
            InvalidRequestError: a tool is named that is not among `tools`, or a call is required without any.
        """
        tools = self.tools or []
        if self.tool_mode == "none":
            return []
        if not tools and self.tool_choice not in (None, "auto"):
            raise InvalidRequestError("'tool_choice' needs 'tools'", "Send the tools", param="tool_choice")
        match self.tool_choice:
            case NamedTool():
                names = [self.tool_choice.function.name]
            case AllowedToolsChoice():
                names = [tool.function.name for tool in self.tool_choice.allowed_tools.tools]
            case _:
                return tools
        known = {tool.function.name for tool in tools}
        if unknown := [name for name in names if name not in known]:
            problem = f"'tool_choice' names {unknown[0]!r}, which is not among 'tools'"
            raise InvalidRequestError(problem, f"Name one of: {', '.join(sorted(known))}", param="tool_choice")
        return [tool for tool in tools if tool.function.name in names]

    def sampling_params(self) -> SamplingParams:
        """The engine's view of this request, but for the form of the answer.

        Raises:
            InvalidRequestError: fields contradict each other.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        return self.to_sampling_params(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )

    def beams(self) -> BeamSearchParams | None:
        """How to search for the likeliest answers, where that is asked for; errors as in `sampling_params`."""
        return self.beam_search_params(self.max_completion_tokens or self.max_tokens)
