"""How models write the calls of tools: one table, a row for each format. Knows no parser and no grammar.

A row says which markers surround a call and in which of four syntaxes it is written:

- `json`: `{"name": "f", "arguments": {…}}`, one object for each call or a list of them;
- `named`: the name as plain text, a marker, then the arguments as JSON;
- `python`: `f(city="Paris", days=3)`, each on its own or in a list;
- `xml`: a tag with the name, and a tag for each argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class XmlTags:
    """What stands around names and values of the `xml` syntax."""

    name_begin: str
    name_end: str
    key_begin: str
    key_end: str
    value_begin: str
    value_end: str
    call_end: str
    pad: str = "\n"
    """Before and after a value, and no part of it."""


@dataclass(frozen=True)
class ToolFormat:
    """One way to write calls."""

    name: str
    signs: tuple[str, ...]
    """A chat template that contains all of these uses the format."""
    begin: str = ""
    """Before a call, or before a list of them."""
    end: str = ""
    """After it; empty where the call's own syntax shows its end."""
    syntax: Literal["json", "named", "python", "xml"] = "json"
    is_list: bool = False
    """Calls stand in brackets between one pair of markers; else each has its own."""
    bare: bool = False
    """A completion may begin with a call and no marker."""
    pad: str = ""
    """Whitespace that the model writes inside the markers."""
    separator: str = ""
    """Between two calls."""
    name_key: str = "name"
    arguments_key: str = "arguments"
    section: tuple[str, str] = ("", "")
    """Around all calls of a completion."""
    after_name: str = ""
    """`named`: between name and `arguments_marker`; `{index}` is the call's number."""
    arguments_marker: str = ""
    """`named`: what the arguments follow."""
    tags: XmlTags | None = None
    call_id: str = "call_{random:24}"
    """How a call is identified; templates of some models insist."""


_QWEN_TAGS = XmlTags("<function=", ">", "<parameter=", ">", "", "</parameter>", "</function>")
_INVOKE_TAGS = XmlTags('<invoke name="', '">', '<parameter name="', '">', "", "</parameter>", "</invoke>", pad="")
_GLM_TAGS = XmlTags("", "", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "", pad="")

_FORMATS = (
    ToolFormat("gpt_oss", ("<|channel|>", "to=functions."), "<|channel|>commentary to=functions.", "<|call|>", "named",
               after_name=" <|constrain|>json", arguments_marker="<|message|>", separator="<|start|>assistant"),
    ToolFormat("deepseek_v3", ("<｜tool▁call▁begin｜>", "```json"), "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
               "\n```<｜tool▁call▁end｜>", "named", arguments_marker="\n```json\n", separator="\n",
               section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")),
    ToolFormat("deepseek_v31", ("<｜tool▁call▁begin｜>",), "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "named",
               arguments_marker="<｜tool▁sep｜>", section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")),
    ToolFormat("kimi_k2", ("<|tool_calls_section_begin|>",), "<|tool_call_begin|>functions.", "<|tool_call_end|>",
               "named", after_name=":{index}", arguments_marker="<|tool_call_argument_begin|>",
               call_id="functions.{name}:{index}",
               section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")),
    ToolFormat("mistral_args", ("[TOOL_CALLS]", "[ARGS]"), "[TOOL_CALLS]", "", "named", arguments_marker="[ARGS]",
               call_id="{random:9}"),
    ToolFormat("mistral", ("[TOOL_CALLS]",), "[TOOL_CALLS]", is_list=True, pad=" ", separator=", ",
               call_id="{random:9}"),
    ToolFormat("glm", ("<tool_call>", "<arg_key>"), "<tool_call>", "</tool_call>", "xml", tags=_GLM_TAGS,
               separator="\n"),
    ToolFormat("seed", ("<seed:tool_call>",), "<seed:tool_call>", "</seed:tool_call>", "xml", tags=_QWEN_TAGS,
               pad="\n", separator="\n"),
    ToolFormat("qwen3_coder", ("<tool_call>", "<function="), "<tool_call>", "</tool_call>", "xml", tags=_QWEN_TAGS,
               pad="\n", separator="\n"),
    ToolFormat("minimax_m2", ("<minimax:tool_call>",), "<minimax:tool_call>", "</minimax:tool_call>", "xml",
               tags=_INVOKE_TAGS, pad="\n", separator="\n"),
    ToolFormat("cohere", ("<|START_ACTION|>",), "<|START_ACTION|>", "<|END_ACTION|>", is_list=True, separator=", ",
               name_key="tool_name", arguments_key="parameters"),
    ToolFormat("internlm", ("<|action_start|>", "<|plugin|>"), "<|action_start|><|plugin|>", "<|action_end|>",
               pad="\n", arguments_key="parameters"),
    ToolFormat("lfm2", ("<|tool_call_start|>",), "<|tool_call_start|>", "<|tool_call_end|>", "python", is_list=True,
               separator=", "),
    ToolFormat("llama4_pythonic", ("<|python_start|>",), "<|python_start|>", "<|python_end|>", "python", is_list=True,
               bare=True, separator=", "),
    ToolFormat("olmo3", ("<function_calls>",), "<function_calls>", "</function_calls>", "python", separator="\n"),
    ToolFormat("granite", ("<|tool_call|>",), "<|tool_call|>", is_list=True, separator=", "),
    ToolFormat("phi4_mini", ("functools[",), "functools", is_list=True, separator=", "),
    ToolFormat("jamba", ("<tool_calls>",), "<tool_calls>", "</tool_calls>", is_list=True, separator=", "),
    ToolFormat("longcat", ("<longcat_tool_call>",), "<longcat_tool_call>", "</longcat_tool_call>", pad="\n",
               separator="\n"),
    ToolFormat("hermes", ("<tool_call>",), "<tool_call>", "</tool_call>", pad="\n", separator="\n"),
    ToolFormat("llama3_json", ("<|python_tag|>",), "<|python_tag|>", bare=True, separator="; ",
               arguments_key="parameters"),
    ToolFormat("pythonic", ("[func_name1(params_name1=",), "", "", "python", is_list=True, bare=True, separator=", "),
    ToolFormat("json", (), "", "", is_list=True, bare=True, separator=", "),
)  # fmt: skip

TOOL_FORMATS: dict[str, ToolFormat] = {f.name: f for f in _FORMATS}
"""The more particular come first: detection takes the first whose signs are all there."""


def detect_tool_format(chat_template: str | None) -> ToolFormat | None:
    """The format that a chat template teaches, or None where it does not speak of tools."""
    if not chat_template or "tools" not in chat_template:
        return None
    found = next((f for f in _FORMATS if f.signs and all(sign in chat_template for sign in f.signs)), None)
    if found is None and '"parameters":' in chat_template and '"name":' in chat_template:
        return TOOL_FORMATS["llama3_json"]
    return found
