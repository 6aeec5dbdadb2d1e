"""A conversation and its tools as a prompt, and how to read what the model answers. Knows no route and no engine."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from lmworks.core.errors import RequestError, TokenizerError
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams, StructuredOutputs
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.output_parser import OutputParser
from lmworks.protocol.reasoning import ReasoningFormat, detect_reasoning_format, starts_in_reasoning
from lmworks.protocol.tool_formats import TOOL_FORMATS, ToolFormat, detect_tool_format
from lmworks.protocol.tool_grammar import after_reasoning, tool_grammar
from lmworks.protocol.tools import Tool, ToolMode
from lmworks.server.served_model import ServedModel

GRAMMARS = find_spec("llguidance") is not None
"""Whether calls that need not be made can be held to their form; without, they are read as they come."""
TAIL_TOKENS = 32
"""Of a prompt, where an opened thought is looked for."""
TOOL_INSTRUCTIONS = (
    "You can call functions. To call them, answer with nothing but a JSON list of calls: "
    '[{"name": "function_name", "arguments": {}}]. Otherwise answer in words. The functions:\n'
)
"""For models whose chat template does not speak of tools."""


@dataclass(frozen=True)
class Conversation:
    """What the model is asked, and in which forms it answers."""

    prompt: Sequence[int]
    tool_format: ToolFormat | None = None
    """How calls are written; None where there are no tools."""
    reasoning_format: ReasoningFormat | None = None
    starts_in_reasoning: bool = False
    """The prompt opens the thoughts."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """As OpenAI writes them."""
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    """Ids of the tokenizer's special tokens by their text."""
    shows_special_tokens: bool = False
    """Markers of calls or thoughts are special tokens, so the text must have them."""

    @property
    def is_plain(self) -> bool:
        """Whether the answer is words alone."""
        return self.tool_format is None and self.reasoning_format is None

    def constrained(
        self, params: SamplingParams, structured: StructuredOutputs | None, mode: ToolMode, *, parallel: bool
    ) -> SamplingParams:
        """Parameters under which the answer keeps to the form of calls and to the one that is asked for.

        Args:
            params: of the request.
            structured: what the answer's text must be; None for any text.
            mode: whether a tool may be called, or must.
            parallel: whether there may be several calls.

        Raises:
            RequestError: a schema is too large or cannot be kept.
        """
        if self.shows_special_tokens:
            params = params.model_copy(update={"skip_special_tokens": False})
        form = None
        if self.tool_format is not None and (mode == "required" or structured is not None or GRAMMARS):
            form = tool_grammar(
                self.tools,
                mode,
                self.tool_format,
                parallel_tool_calls=parallel,
                special_tokens=self.special_tokens,
                reasoning_format=self.reasoning_format,
                starts_in_reasoning=self.starts_in_reasoning,
                answer=structured,
            )
        if form is None and structured is not None:
            form = after_reasoning(structured, self.reasoning_format, self.starts_in_reasoning, self.special_tokens)
        return params.model_copy(update={"structured_outputs": form})

    def parser(self) -> OutputParser:
        """For one completion."""
        return OutputParser(self.tool_format, self.reasoning_format, self.starts_in_reasoning, self.tools)


def encode_conversation(
    model: ServedModel,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    inputs: Mapping[str, Any],
    *,
    param: str,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> Conversation:
    """Write a conversation down as the model's chat template wants it.

    Args:
        model: who answers.
        messages: the turns so far.
        tools: what the model may call.
        inputs: switches of the template.
        param: the request field that holds the conversation, for error bodies.
        add_generation_prompt: open the assistant's turn.
        continue_final_message: leave the last turn open instead.

    Raises:
        InvalidRequestError: the model has no chat template, or its template refuses the conversation.
    """
    if not model.can_chat:
        raise InvalidRequestError(
            f"The model {model.name!r} has no chat template", "Use /v1/completions instead", param="model"
        )
    tokenizer = model.llm.tokenizer
    offered = tuple(tool.to_template() for tool in tools)
    tool_format = detect_tool_format(tokenizer.chat_template) if offered else None
    if offered and tool_format is None:
        tool_format, messages = TOOL_FORMATS["json"], _with_instructions(messages, offered)
    try:
        prompt = model.llm.prompts.chat(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            inputs={**inputs, "tools": list(offered)} if offered else inputs,
        )
    except (TokenizerError, RequestError) as error:
        raise InvalidRequestError(error.problem, error.remedy, param=param) from error
    special = {t.content: i for t in tokenizer.special_tokens if (i := tokenizer.token_id(t.content)) is not None}
    reasoning_format = detect_reasoning_format(tokenizer.chat_template)
    tail = tokenizer.decode(prompt[-TAIL_TOKENS:], skip_special_tokens=False) if reasoning_format else ""
    return Conversation(
        prompt=prompt,
        tool_format=tool_format,
        reasoning_format=reasoning_format,
        starts_in_reasoning=starts_in_reasoning(tail, reasoning_format),
        tools=offered,
        special_tokens=special,
        shows_special_tokens=_marked_by(special, tool_format, reasoning_format),
    )


def _with_instructions(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation with its tools described at the beginning, for the template to show."""
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = TOOL_INSTRUCTIONS + listed
    first, *rest = messages
    if first.role == "system":
        return [first.model_copy(update={"content": f"{first.content}\n\n{text}"}), *rest]
    return [Message(role="system", content=text), *messages]


def _marked_by(
    special: Collection[str], tool_format: ToolFormat | None, reasoning_format: ReasoningFormat | None
) -> bool:
    """Whether special tokens are part of the markers of calls or thoughts."""
    markers = [] if tool_format is None else [tool_format.begin, tool_format.end, *tool_format.section]
    if reasoning_format is not None:
        markers += [reasoning_format.begin, reasoning_format.end]
    return any(token in marker for marker in markers for token in special)
