"""One text gives the same content, thoughts and calls, however it is cut into pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.protocol.output_events import ContentDelta, Event, ReasoningDelta, ToolCallArguments, ToolCallStart
from lmworks.protocol.output_parser import OutputParser
from lmworks.protocol.reasoning import REASONING_FORMATS, detect_reasoning_format, starts_in_reasoning
from lmworks.protocol.tool_formats import TOOL_FORMATS, detect_tool_format

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "properties": {
                    "a": {"type": "integer"},
                    "s": {"type": "string"},
                    "l": {"type": "array"},
                    "o": {"type": "object"},
                    "n": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                }
            },
        },
    },
    {"type": "function", "function": {"name": "g"}},
]


@dataclass
class Read:
    """What came out, with the events' order."""

    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case ContentDelta(text):
                    self.content += text
                    kind = "content"
                case ReasoningDelta(text):
                    self.reasoning += text
                    kind = "reasoning"
                case ToolCallStart(index, call_id, name):
                    assert index == len(self.calls)
                    assert call_id
                    self.calls.append([name, ""])
                    kind = f"call {index}"
                case ToolCallArguments(index, text):
                    assert text, "no empty pieces"
                    assert index == len(self.calls) - 1, "only the last call grows"
                    self.calls[index][1] += text
                    kind = f"arguments {index}"
            if self.order[-1:] != [kind]:
                self.order.append(kind)


def read(pieces: Iterable[str], tool: str | None = None, reasoning: str | None = None, begun: bool = False) -> Read:
    parser = OutputParser(
        TOOL_FORMATS[tool] if tool else None, REASONING_FORMATS[reasoning] if reasoning else None, begun, TOOLS
    )
    result = Read()
    for piece in pieces:
        result.add(parser.add(piece))
    result.add(parser.finish())
    return result


F1, G0 = ["f", '{"a": 1}'], ["g", "{}"]
CALLS = {
    "hermes": (
        'Sure.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>\nDone.',
        "Sure.\nDone.",
        [F1, G0],
    ),
    "mistral": ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"arguments": {}, "name": "g"}]', "", [F1, G0]),
    "mistral_args": ('[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}', "", [F1, G0]),
    "llama3_json": ('{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', "", [F1, G0]),
    "json": ('[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]', "", [F1, G0]),
    "granite": ('<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]', "", [F1]),
    "phi4_mini": ('functools[{"name": "f", "arguments": {"a": 1}}]', "", [F1]),
    "jamba": ('<tool_calls>[{"name": "f", "arguments": {"a": 1}}]</tool_calls>', "", [F1]),
    "longcat": ('<longcat_tool_call>{"name": "f", "arguments": {"a": 1}}</longcat_tool_call>', "", [F1]),
    "internlm": ('Hm<|action_start|><|plugin|>\n{"name": "f", "parameters": {"a": 1}}<|action_end|>', "Hm", [F1]),
    "cohere": (
        '<|START_ACTION|>[\n{"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}}\n]<|END_ACTION|>',
        "",
        [F1],
    ),
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜>"
        '<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        [F1, G0],
    ),
    "deepseek_v31": (
        'x<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "x",
        [F1],
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
        '{"a": 1}<|tool_call_end|><|tool_calls_section_end|>',
        "",
        [F1],
    ),
    "gpt_oss": (
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>',
        "",
        [F1],
    ),
    "pythonic": (
        "[f(a=1, s='it\\'s \"x\"', l=[True, None, (1, 2,)], o={'k': -1.5}), g( )]",
        "",
        [["f", '{"a": 1, "s": "it\'s \\"x\\"", "l": [true, null, [1, 2]], "o": {"k": -1.5}}'], G0],
    ),
    "llama4_pythonic": ("<|python_start|>[f(a=1)]<|python_end|> ok", " ok", [F1]),
    "lfm2": ("hey <|tool_call_start|>[f(a=1), g()]<|tool_call_end|> bye", "hey bye", [F1, G0]),
    "olmo3": ("<function_calls>f(a=1)\ng()</function_calls>", "", [F1, G0]),
    "qwen3_coder": (
        'Ok\n<tool_call>\n<function=f>\n<parameter=a>\n5\n</parameter>\n<parameter=s>\nx\n"q" </p\n\n</parameter>\n'
        "<parameter=n>\nnull\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>",
        "Ok",
        [["f", '{"a": 5, "s": "x\\n\\"q\\" </p\\n", "n": null}'], G0],
    ),
    "seed": ("<seed:tool_call><function=f><parameter=a>1</parameter></function></seed:tool_call>", "", [F1]),
    "minimax_m2": (
        '<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">1</parameter>\n</invoke>\n<invoke name="g">\n'
        "</invoke>\n</minimax:tool_call>",
        "",
        [F1, G0],
    ),
    "glm": (
        "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>s</arg_key>\n<arg_value>1</arg_value>\n"
        "</tool_call>\n<tool_call>g\n</tool_call>",
        "",
        [["f", '{"a": 1, "s": "1"}'], G0],
    ),
}


def test_every_format_has_an_example():
    assert CALLS.keys() == TOOL_FORMATS.keys()


@pytest.mark.parametrize("tool", CALLS)
def test_calls_of_every_format(tool):
    text, content, calls = CALLS[tool]
    result = read([text], tool)
    assert (result.content, result.calls) == (content, calls)
    assert read(list(text), tool) == result
    for _, arguments in result.calls:
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize("tool", [name for name in CALLS if name not in ("llama4_pythonic", "lfm2", "olmo3")])
def test_arguments_come_while_they_are_written(tool):
    parser = OutputParser(TOOL_FORMATS[tool], tools=TOOLS)
    text, _, calls = CALLS[tool]
    seen = ""
    for character in text:
        for event in parser.add(character):
            if isinstance(event, ToolCallArguments) and event.index == 0:
                seen += event.text
                assert calls[0][1].startswith(seen)
        if seen:
            break
    assert seen != calls[0][1], "not only when the call is complete"


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "\n", " ", "[TOOL_CALLS]", "[ARGS]", "<think>", "</think>", '{"name": "f", ',
    '"arguments": {"a": "}\\"', "}", '"', "]", "[", ",", "f(a=1)", "<function=f>", "<parameter=s>", "</parameter>",
    "</function>", "<|python_tag|>", "x", "é😀", "\\", ":", "<", "[f(", "a='", "'", ")", "name", "<arg_key>a</arg_key>",
    "<|channel|>", "analysis<|message|>", "<|end|>", "commentary to=functions.f", "<|message|>", "<|start|>assistant",
]  # fmt: skip
TEXTS = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join),
    st.builds(lambda a, b: a + b, st.sampled_from([text for text, _, _ in CALLS.values()]), st.sampled_from(FRAGMENTS)),
)


@settings(max_examples=80, deadline=None)
@given(
    text=TEXTS,
    cuts=st.lists(st.integers(0, 300), max_size=8),
    tool=st.sampled_from([None, *TOOL_FORMATS]),
    reasoning=st.sampled_from([None, *REASONING_FORMATS]),
    begun=st.booleans(),
)
def test_any_cutting_gives_the_same(text, cuts, tool, reasoning, begun):
    whole = read([text], tool, reasoning, begun)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert read([text[a:b] for a, b in pairwise(edges)], tool, reasoning, begun) == whole
    assert read(text, tool, reasoning, begun) == whole


@settings(max_examples=40, deadline=None)
@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join), tool=st.sampled_from([*TOOL_FORMATS]))
def test_a_text_without_a_call_is_all_content(text, tool):
    result = read([text], tool)
    if not result.calls:
        sections = [marker for marker in TOOL_FORMATS[tool].section if marker]
        assert sections or result.content == text


@settings(max_examples=25, deadline=None)
@given(
    arguments=st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=10,
        ),
        max_size=4,
    ),
    indent=st.sampled_from([None, 2]),
    plain=st.booleans(),
)
def test_nested_arguments_stay_as_they_were_written(arguments, indent, plain):
    written = json.dumps(arguments, indent=indent, ensure_ascii=plain)
    text = f'<tool_call>\n{{"name": "f", "arguments": {written}}}\n</tool_call>'
    assert read(text, "hermes").calls == [["f", written]]


@settings(max_examples=25, deadline=None)
@given(
    value=st.text(max_size=20), number=st.integers(), items=st.lists(st.one_of(st.none(), st.booleans()), max_size=3)
)
def test_python_arguments_become_json(value, number, items):
    result = read(f"[f(s={value!r}, a={number!r}, l={items!r})]", "pythonic")
    assert [json.loads(text) for _, text in result.calls] == [{"s": value, "a": number, "l": items}]


@settings(max_examples=25, deadline=None)
@given(value=st.text(max_size=20).filter(lambda value: "</" not in value and "\r" not in value))
def test_text_between_tags_is_that_text(value):
    text = f"<tool_call>\n<function=f>\n<parameter=s>\n{value}\n</parameter>\n</function>\n</tool_call>"
    assert json.loads(read(text, "qwen3_coder").calls[0][1]) == {"s": value}


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        ("hermes", "<tool_call>\nno call</tool_call> after"),
        ("hermes", '<tool_call>\n{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": "not an object"}</tool_call>'),
        ("hermes", 'words <tool_call> {"name": '),
        ("hermes", "x < y <too"),
        ("llama3_json", '{"city": "Paris"}'),
        ("llama3_json", '{"name": "unknown", "parameters": {}}'),
        ("llama3_json", '{"name": "f"}'),
        ("pythonic", "[1] According to the first source"),
        ("pythonic", "[f(1, 2)]"),
        ("pythonic", "[see(x=1)]"),
        ("json", '[1, 2, {"name": "f"}]'),
        ("mistral_args", "[TOOL_CALLS]{}"),
        ("qwen3_coder", "<tool_call>\n<function>\n</tool_call>"),
    ],
)
def test_what_is_no_call_comes_back_as_content(tool, text):
    for pieces in ([text], text):
        result = read(pieces, tool)
        assert result.content == text
        assert not result.calls


def test_a_call_that_breaks_off_is_a_beginning_of_json():
    assert read('<tool_call>{"name": "f", "arguments": {"s": "Par', "hermes").calls == [["f", '{"s": "Par']]
    assert read("<tool_call>\n<function=f>\n<parameter=s>\nPar", "qwen3_coder").calls == [["f", '{"s": "Par']]
    broken = read('<tool_call>{"name": "f", "arguments": {"a": 1,,}}</tool_call>', "hermes")
    assert broken.calls == [["f", '{"a": 1,']]
    assert broken.content == ",}}</tool_call>", "the rest is not lost"


def test_a_call_after_a_broken_one_is_read():
    text = '<tool_call> <tool_call>{"name": "g", "arguments": "{\\"x\\": 1}"}</tool_call>'
    result = read([text], "hermes")
    assert result.content == "<tool_call> "
    assert result.calls == [["g", '{"x": 1}']], "arguments given as a string that holds JSON are that JSON"


def test_line_breaks_in_strings_are_escaped():
    result = read('<tool_call>{"name": "f", "arguments": {"s": "a\nb\t"}}</tool_call>', "hermes")
    assert json.loads(result.calls[0][1]) == {"s": "a\nb\t"}


def test_identifiers_are_as_templates_want_them():
    def identifier(tool: str) -> str:
        events = OutputParser(TOOL_FORMATS[tool], tools=TOOLS).add(CALLS[tool][0])
        return next(event.id for event in events if isinstance(event, ToolCallStart))

    assert identifier("hermes").startswith("call_")
    assert identifier("hermes") != identifier("hermes")
    assert len(identifier("mistral")) == 9
    assert identifier("kimi_k2") == "functions.f:0"


@pytest.mark.parametrize(
    ("text", "begun", "reasoning", "content"),
    [
        ("<think>\nhm\n\nok\n</think>\n\nHi\n", False, "hm\n\nok", "Hi\n"),
        ("hm</think>Hi", True, "hm", "Hi"),
        ("<think>hm</think>Hi", True, "hm", "Hi"),
        ('{"a": 1}', False, "", '{"a": 1}'),
        ("Hi <think>x</think>", False, "", "Hi <think>x</think>"),
        ("<think>never closed", False, "never closed", ""),
        ("  <thin", False, "", "  <thin"),
        ("a</think>", True, "a", ""),
    ],
)
def test_thoughts_are_told_from_the_answer(text, begun, reasoning, content):
    for pieces in ([text], text):
        result = read(pieces, None, "think", begun)
        assert (result.reasoning, result.content) == (reasoning, content)


def test_thoughts_then_a_call():
    text = "<think>which <tool_call>?</think>\n<tool_call>\n" + '{"name": "g", "arguments": {}}\n</tool_call>'
    result = read(text, "hermes", "think")
    assert result.order == ["reasoning", "call 0", "arguments 0"]
    assert result.reasoning == "which <tool_call>?"


def test_channels():
    text = (
        "<|channel|>analysis<|message|>first<|end|><|start|>assistant<|channel|>analysis<|message|>second<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
    )
    result = read(text, "gpt_oss", "gpt_oss")
    assert (result.reasoning, result.content, result.calls) == ("firstsecond", "", [F1])
    final = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hi there<|return|>"
    result = read(final, "gpt_oss", "gpt_oss")
    assert (result.reasoning, result.content) == ("hm", "Hi there")


def test_formats_are_found_in_templates():
    qwen = '{%- if tools %}<tools>{{ tools }}</tools> <tool_call>\n{"name": <name>}\n</tool_call>{% endif %}</think>'
    assert detect_tool_format(qwen) is TOOL_FORMATS["hermes"]
    assert detect_tool_format(qwen + "<function=example>") is TOOL_FORMATS["qwen3_coder"]
    assert detect_tool_format("{{ tools }}[AVAILABLE_TOOLS][TOOL_CALLS]") is TOOL_FORMATS["mistral"]
    assert detect_tool_format("{{ tools }}[TOOL_CALLS]x[ARGS]") is TOOL_FORMATS["mistral_args"]
    llama = '{{ tools }} respond in the format {"name": function name, "parameters": dictionary}'
    assert detect_tool_format(llama) is TOOL_FORMATS["llama3_json"]
    assert detect_tool_format("{{ messages }} <tool_call>") is None
    assert detect_tool_format(None) is None
    assert detect_reasoning_format(qwen) is REASONING_FORMATS["think"]
    assert detect_reasoning_format("[THINK]{{ x }}[/THINK]") is REASONING_FORMATS["mistral"]
    assert detect_reasoning_format("<|channel|>analysis<|message|>") is REASONING_FORMATS["gpt_oss"]
    assert detect_reasoning_format("{{ messages }}") is None
    assert detect_reasoning_format("<|user|>{{ x }}<|end|><|assistant|>") is None  # Phi's


def test_a_prompt_tells_whether_thoughts_were_opened():
    think = REASONING_FORMATS["think"]
    assert starts_in_reasoning("<|im_start|>assistant\n<think>\n", think)
    assert not starts_in_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n", think)
    assert not starts_in_reasoning("<|im_start|>assistant\n", think)
    assert not starts_in_reasoning("<think>", None)


def test_no_marker_hides_in_another():
    for tool in TOOL_FORMATS.values():
        for reasoning in REASONING_FORMATS.values():
            markers = {tool.begin, *tool.section, reasoning.begin, reasoning.end, *reasoning.silent} - {""}
            assert not [(a, b) for a in markers for b in markers if a != b and a in b], (tool.name, reasoning.name)
