"""A model with random logits calls the tools it must call, with arguments that their schemas permit."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest
import tiny_tokenizers
from json_schemas import walk

from lmworks.core.errors import RequestError
from lmworks.core.sampling import StructuredOutputs
from lmworks.engine.grammar.compiler import GrammarCompiler
from lmworks.protocol.output_events import ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallStart
from lmworks.protocol.output_parser import OutputParser
from lmworks.protocol.reasoning import REASONING_FORMATS
from lmworks.protocol.tool_formats import TOOL_FORMATS, ToolFormat
from lmworks.protocol.tool_grammar import after_reasoning, tool_grammar
from lmworks.tokenization import Tokenizer, load_tokenizer

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "see http://example.com/cities # or \"elsewhere\""},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["c", "f"]},
        "deep": {"type": "object", "properties": {"x": {"type": "array", "items": {"type": "number"}}},
                 "required": ["x"]},
        "exact": {"type": "boolean"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["city", "unit"],
}  # fmt: skip
OPTIONAL = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"$ref": "#/$defs/q"}},
    "$defs": {"q": {"enum": [1, "z", None]}},
    "additionalProperties": False,
}


def function(name: str, parameters: dict | None = None, **more: object) -> dict:
    described = {} if parameters is None else {"parameters": parameters}
    return {"type": "function", "function": {"name": name, **described, **more}}


HERMES = TOOL_FORMATS["hermes"]
TOOLS = [function("get_weather", WEATHER), function("no_arguments"), function("opt-ional", OPTIONAL)]
SCHEMAS = {"get_weather": WEATHER, "no_arguments": {}, "opt-ional": OPTIONAL}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("llama3")
    tiny_tokenizers.save("llama3", folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def compiler(tokenizer):
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def special(tokenizer) -> dict[str, int]:
    return {t.content: tokenizer.token_id(t.content) for t in tokenizer.special_tokens}


def written(compiler, tokenizer, outputs: StructuredOutputs, seed: int, tool_format: ToolFormat = HERMES) -> str:
    constraint = compiler.compile(outputs).result(timeout=20)()
    closing = "" if tool_format.tags is None else f"{tool_format.tags.pad}{tool_format.tags.value_end}"
    return tokenizer.decode(walk(constraint, tokenizer, seed, closing=closing), skip_special_tokens=False)


def permitted(compiler, tokenizer, outputs: StructuredOutputs, text: str) -> bool:
    """Whether a completion may be this text, special tokens included."""
    constraint = compiler.compile(outputs).result(timeout=20)()
    pieces = [text]
    for token in tokenizer.special_tokens:
        pieces = [part for piece in pieces for part in _split(piece, token.content)]
    names = {token.content for token in tokenizer.special_tokens}
    ids = [i for p in pieces for i in ([tokenizer.token_id(p)] if p in names else tokenizer.encode(p))]
    return all(constraint.accept(i) for i in ids) and constraint.accept(tokenizer.eos_token_ids[0])


def _split(text: str, marker: str) -> list[str]:
    parts = text.split(marker)
    return [piece for part in parts for piece in (marker, part)][1:]


def calls(tool_format: ToolFormat, text: str, reasoning: str | None = None, tools: list[dict] = TOOLS):
    parser = OutputParser(tool_format, REASONING_FORMATS[reasoning] if reasoning else None, tools=tools)
    events = [*parser.add(text), *parser.finish()]
    names = [event.name for event in events if isinstance(event, ToolCallStart)]
    arguments = [
        "".join(e.text for e in events if isinstance(e, ToolCallArguments) and e.index == i) for i in range(len(names))
    ]
    content = "".join(event.text for event in events if isinstance(event, ContentDelta))
    return list(zip(names, map(json.loads, arguments), strict=True)), content


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_required_calls_are_valid_in_every_format(compiler, tokenizer, name):
    tool_format = TOOL_FORMATS[name]
    grammar = tool_grammar(TOOLS, "required", tool_format)
    for seed in range(6):
        text = written(compiler, tokenizer, grammar, seed, tool_format)
        found, content = calls(tool_format, text, "gpt_oss" if name == "gpt_oss" else None)
        assert found, text
        assert content.strip() == "", text
        for called, arguments in found:
            jsonschema.validate(arguments, SCHEMAS[called])


@pytest.mark.parametrize("name", ["hermes", "mistral", "mistral_args", "pythonic", "llama3_json", "qwen3_coder"])
def test_one_call_where_calls_are_not_parallel(compiler, tokenizer, name):
    grammar = tool_grammar(TOOLS[:1], "required", TOOL_FORMATS[name], parallel_tool_calls=False)
    for seed in range(8):
        found, _ = calls(TOOL_FORMATS[name], written(compiler, tokenizer, grammar, seed, TOOL_FORMATS[name]))
        assert [called for called, _ in found] == ["get_weather"]


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "unit": "c"}}\n</tool_call>'


def test_auto_permits_words_but_no_wrong_call(compiler, tokenizer):
    grammar = tool_grammar(TOOLS, "auto", HERMES)
    for right in ("", "Hello <tool> & <tool_cal", CALL, f"Let me see.\n{CALL}\n{CALL}\nThere."):
        assert permitted(compiler, tokenizer, grammar, right), right
    for wrong in ("<tool_call>", "<tool_call>hi", CALL.replace("get_weather", "other"), CALL.replace('"c"', '"k"')):
        assert not permitted(compiler, tokenizer, grammar, f"Well, {wrong}"), wrong


def test_auto_with_one_call_ends_after_it(compiler, tokenizer):
    grammar = tool_grammar(TOOLS, "auto", HERMES, parallel_tool_calls=False)
    assert permitted(compiler, tokenizer, grammar, f"So: {CALL}")
    assert permitted(compiler, tokenizer, grammar, "So.")
    assert not permitted(compiler, tokenizer, grammar, f"So: {CALL}\n{CALL}")


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "pythonic", "qwen3_coder"])
@pytest.mark.parametrize("form", [{"json_schema": {"type": "array", "items": {"enum": [7]}, "minItems": 1}},
                                  {"grammar": 'start: "[7]"'}])  # fmt: skip
def test_a_structured_answer_or_a_call(compiler, tokenizer, name, form):
    grammar = tool_grammar(TOOLS[1:2], "auto", TOOL_FORMATS[name], answer=StructuredOutputs(**form))
    assert permitted(compiler, tokenizer, grammar, "[7]")
    assert not permitted(compiler, tokenizer, grammar, "[8]")
    assert not permitted(compiler, tokenizer, grammar, "words")
    call = {
        "hermes": '<tool_call>\n{"name": "no_arguments", "arguments": {}}\n</tool_call>',
        "llama3_json": '{"name": "no_arguments", "parameters": {}}',
        "pythonic": "[no_arguments()]",
        "qwen3_coder": "<tool_call>\n<function=no_arguments>\n</function>\n</tool_call>",
    }[name]
    assert permitted(compiler, tokenizer, grammar, call)


def test_markers_that_are_special_tokens(compiler, tokenizer, special):
    marked = replace(HERMES, begin="<|user|>", end="<|assistant|>")
    call = CALL.replace("<tool_call>", "<|user|>").replace("</tool_call>", "<|assistant|>")
    required = tool_grammar(TOOLS, "required", marked, special_tokens=special)
    for seed in range(4):
        text = written(compiler, tokenizer, required, seed)
        assert calls(marked, text)[0], text
    auto = tool_grammar(TOOLS, "auto", marked, special_tokens=special)
    assert permitted(compiler, tokenizer, auto, f"Hm <|begin|> {call} then {call}")
    assert not permitted(compiler, tokenizer, auto, f"Hm {call.replace('Rome', 'Rome<|begin|>')}")
    assert not permitted(compiler, tokenizer, auto, "Hm <|user|> no")


def test_no_grammar_where_none_is_needed():
    assert tool_grammar(TOOLS, "none", HERMES) is None
    assert tool_grammar([], "required", HERMES) is None
    assert tool_grammar(TOOLS, "auto", TOOL_FORMATS["pythonic"]) is None


def test_thoughts_may_come_before_a_required_call(compiler, tokenizer, special):
    think = REASONING_FORMATS["think"]
    grammar = tool_grammar(TOOLS, "required", HERMES, reasoning_format=think)
    assert permitted(compiler, tokenizer, grammar, CALL)
    assert permitted(compiler, tokenizer, grammar, f"<think>\nIs it <tool_call>?\n</think>\n\n{CALL}")
    assert not permitted(compiler, tokenizer, grammar, f"No. {CALL}")
    begun = tool_grammar(TOOLS, "auto", HERMES, reasoning_format=think, starts_in_reasoning=True)
    assert permitted(compiler, tokenizer, begun, f"I could <tool_call> it</think>Well {CALL}")
    assert not permitted(compiler, tokenizer, begun, "Done</think><tool_call>x")


def test_strict_functions_are_kept_or_refused(compiler, tokenizer):
    unkept = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]}
    with pytest.raises(RequestError, match=r"tools\[1\]\.function\.parameters/properties/a/uniqueItems"):
        tool_grammar([TOOLS[0], function("f", unkept, strict=True)], "required", HERMES)
    assert written(compiler, tokenizer, tool_grammar([function("f", unkept)], "required", HERMES), 0)
    pattern = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^x$"}}}
    with pytest.raises(RequestError, match="properties/a/pattern"):
        tool_grammar([function("f", pattern, strict=True)], "required", TOOL_FORMATS["qwen3_coder"])
    union = {"anyOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}
    with pytest.raises(RequestError, match="anyOf"):
        tool_grammar([function("f", union, strict=True)], "required", TOOL_FORMATS["pythonic"])


def test_many_tools_compile_quickly_enough(compiler, tokenizer):
    tools = [function(f"tool_{i}", WEATHER) for i in range(100)]
    found, _ = calls(HERMES, written(compiler, tokenizer, tool_grammar(tools, "required", HERMES), 0))
    assert found


@pytest.mark.parametrize(
    ("outputs", "right", "wrong"),
    [
        ({"json_schema": {"type": "integer"}}, "7", "x"),
        ({"json_object": True}, "{}", "7"),
        ({"choice": ("yes", "no")}, "no", "maybe"),
        ({"regex": "[ab/]+"}, "a/b", "c"),
        ({"grammar": 'start: "a" start | "b"'}, "aab", "aa"),
        ({"grammar": 'root ::= "a" root | "b"'}, "aab", "aa"),
    ],
)
def test_structured_answers_after_thoughts(compiler, tokenizer, outputs, right, wrong):
    think = REASONING_FORMATS["think"]
    after = after_reasoning(StructuredOutputs(**outputs), think, starts_in_reasoning=True)
    assert permitted(compiler, tokenizer, after, f"Hm {{\n</think>\n\n{right}")
    assert not permitted(compiler, tokenizer, after, f"Hm</think>{wrong}")
    assert not permitted(compiler, tokenizer, after, right)


def test_thoughts_are_optional_where_the_prompt_has_not_opened_them(compiler, tokenizer):
    think = REASONING_FORMATS["think"]
    outputs = StructuredOutputs(json_object=True)
    after = after_reasoning(outputs, think, starts_in_reasoning=False)
    assert permitted(compiler, tokenizer, after, "{}")
    assert permitted(compiler, tokenizer, after, "<think>x</think>{}")
    assert not permitted(compiler, tokenizer, after, "x{}")
    assert after_reasoning(outputs, None, starts_in_reasoning=True) is outputs
    free = StructuredOutputs(regex=".*")
    assert after_reasoning(free, think, starts_in_reasoning=False) is free
    parser = OutputParser(None, think)
    events = [*parser.add("<think>x</think>{}"), *parser.finish()]
    assert events == [ReasoningDelta("x"), ContentDelta("{}")]
