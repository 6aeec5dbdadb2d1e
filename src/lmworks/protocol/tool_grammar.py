"""Grammars that make a completion call tools as its model writes calls, with arguments that their schemas permit.

`tool_choice` "required" (and a named function, which is the same with one tool) permits calls alone; "auto" any text,
until a call's marker comes: from there on it must be a call. Thoughts may come first. Knows no parser and no engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lmworks.core.sampling import StructuredOutputs
from lmworks.protocol.call_grammar import call_rule
from lmworks.protocol.json_schema import checked_schema, schema_grammar
from lmworks.protocol.lark import ANY_TEXT, LarkWriter
from lmworks.protocol.reasoning import ReasoningFormat
from lmworks.protocol.tool_formats import ToolFormat

ToolMode = Literal["none", "auto", "required"]


def tool_grammar(
    tools: Sequence[Mapping[str, Any]],
    tool_choice: ToolMode,
    tool_format: ToolFormat,
    *,
    parallel_tool_calls: bool = True,
    special_tokens: Mapping[str, int] | None = None,
    reasoning_format: ReasoningFormat | None = None,
    starts_in_reasoning: bool = False,
    answer: StructuredOutputs | None = None,
) -> StructuredOutputs | None:
    """What a completion that may or must call tools has to be.

    Args:
        tools: those that may be called, as OpenAI writes them. For a named function, that one alone.
        tool_choice: "none", "auto", or "required".
        tool_format: how the model writes calls.
        parallel_tool_calls: more than one call in a completion.
        special_tokens: ids of the tokenizer's special tokens by their text.
        reasoning_format: how the model marks thoughts, which may come before the calls.
        starts_in_reasoning: the prompt has opened the thoughts.
        answer: for "auto": what a completion that calls no tool must be; any text by default.

    Returns:
        A grammar; None where any text is right, or nothing in the text tells where a call begins.

    Raises:
        RequestError: the arguments of a tool with `strict: true` cannot be kept to their schema, or a schema is
            hostile. Without `strict` what cannot be kept is left out.
    """
    if tool_choice == "none" or not tools:
        return None
    free = tool_choice == "auto" and answer is None
    if free and (tool_format.bare or tool_format.name == "gpt_oss"):
        return None
    writer = LarkWriter(special_tokens or {})
    writer.rule("start", "")
    bodies = [call_rule(writer, tool_format, number, tool) for number, tool in enumerate(tools)]
    body = writer.rule("body", " | ".join(bodies))
    thoughts = _thoughts(writer, reasoning_format, starts_in_reasoning, in_text=free)
    calls = (_auto if free else _required)(writer, tool_format, body, parallel_tool_calls)
    if tool_choice == "required" or answer is None:
        writer.rule("start", f"{thoughts} {calls}".strip())
        return StructuredOutputs(grammar=writer.text())
    writer.rule("start", f"{thoughts} (calls | answer)".strip())
    writer.rule("calls", calls)
    return _with_answer(writer, answer)


def after_reasoning(
    outputs: StructuredOutputs,
    reasoning_format: ReasoningFormat | None,
    starts_in_reasoning: bool,
    special_tokens: Mapping[str, int] | None = None,
) -> StructuredOutputs:
    """The same form for the answer of a model that thinks first: its thoughts are free.

    Where the prompt has not opened them, they need an opening marker that no answer can begin with: a special token, or
    any marker where the answer is JSON or a choice.

    Args:
        outputs: what the answer must be.
        reasoning_format: how the model marks thoughts; None changes nothing.
        starts_in_reasoning: the prompt has opened them.
        special_tokens: ids of the tokenizer's special tokens by their text.
    """
    writer = LarkWriter(special_tokens or {})
    writer.rule("start", "")
    free = outputs.regex is not None or outputs.grammar is not None
    thoughts = _thoughts(writer, reasoning_format, starts_in_reasoning, in_text=free)
    if not thoughts:
        return outputs
    writer.rule("start", f"{thoughts} answer")
    return _with_answer(writer, outputs)


def _with_answer(writer: LarkWriter, outputs: StructuredOutputs) -> StructuredOutputs:
    """The grammar, with a rule `answer` for what is asked for."""
    if outputs.grammar is None:
        writer.rule("answer", _answer(writer, outputs))
        return StructuredOutputs(grammar=writer.text())
    writer.rule("answer", "@own_answer")
    parts = [{"lark_grammar": writer.text()}, {"name": "own_answer", "lark_grammar": outputs.grammar}]
    return StructuredOutputs(grammar=json.dumps({"grammars": parts}, ensure_ascii=False))


def _answer(writer: LarkWriter, outputs: StructuredOutputs) -> str:
    if outputs.regex is not None:
        return "/" + re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", outputs.regex).replace("\n", r"\n") + "/"
    if outputs.choice is not None:
        return " | ".join(writer.literal(choice) for choice in outputs.choice)
    schema = {"type": "object"} if outputs.json_schema is None else checked_schema(outputs.json_schema)
    return f"%json {schema_grammar(schema)}"


def _thoughts(writer: LarkWriter, reasoning: ReasoningFormat | None, begun: bool, in_text: bool) -> str:
    """What comes before the answer; empty where that cannot be told from the answer itself."""
    if reasoning is None or (in_text and not begun and not writer.is_special(reasoning.begin)):
        return ""
    writer.up_to("thoughts", reasoning.end)
    between = f"{writer.literal(reasoning.between)} /[ \\n]{{0,2}}/"
    if begun:
        return f"thoughts {between}"
    return f"({writer.literal(reasoning.begin)} thoughts {between})?"


def _required(writer: LarkWriter, tool_format: ToolFormat, body: str, parallel: bool) -> str:
    """Calls and nothing else."""
    pad = writer.literal(tool_format.pad)
    between = writer.literal(tool_format.separator)
    begin, end = writer.literal(tool_format.begin), writer.literal(tool_format.end)
    if tool_format.is_list:
        more = f"({between} {body})*" if parallel else ""
        calls = f'{begin} {pad} "[" {body} {more} "]" {end}'
    elif tool_format.bare:
        calls = f"{body} ({between} {body})*" if parallel else body
    else:
        call = writer.rule("call", f"{begin} {pad} {body} {pad} {end}")
        calls = f"{call} ({between} {call})*" if parallel else call
    opening, closing = map(writer.literal, tool_format.section)
    return f"{opening} {calls} {closing}"


def _auto(writer: LarkWriter, tool_format: ToolFormat, body: str, parallel: bool) -> str:
    """Any text; a call after each marker."""
    pad, end = writer.literal(tool_format.pad), writer.literal(tool_format.end)
    call = f"{pad} {body} {pad} {end}"
    if tool_format.is_list:
        more = f"({writer.literal(tool_format.separator)} {body})*" if parallel else ""
        call = f'{pad} "[" {body} {more} "]" {end}'
    writer.rule("call", f"{writer.up_to('opening', tool_format.begin)} {call}")
    other = writer.other_special(tool_format.begin)
    text = f"({ANY_TEXT} {other})*" if other else ""
    calls = f"({ANY_TEXT} {other} | call)*" if other else "call*"
    return f"{calls} {ANY_TEXT}" if parallel else f"{text} ({ANY_TEXT} | call {writer.literal(tool_format.section[1])})"
