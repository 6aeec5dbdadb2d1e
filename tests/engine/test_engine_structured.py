"""Structured outputs through the whole engine: a tiny random model answers in the form that was asked for."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from tiny_engine import byte_tokenizer, random_prompts, tiny_model

from lmworks.core.errors import RequestError
from lmworks.core.sampling import SamplingParams, StructuredOutputs
from lmworks.engine import LLM, EngineConfig
from lmworks.protocol.output_parser import OutputParser
from lmworks.protocol.tool_formats import TOOL_FORMATS
from lmworks.protocol.tool_grammar import tool_grammar

TOKENIZER = byte_tokenizer()
SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["a", "b"]},
        "day": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["id", "kind", "day", "tags"],
    "additionalProperties": False,
}


def llm(**config: object) -> LLM:
    return LLM(tiny_model(max_position_embeddings=512), TOKENIZER, EngineConfig(block_size=4, **config))


def params(seed: int, **outputs: object) -> SamplingParams:
    return SamplingParams(seed=seed, max_tokens=300, n=2, structured_outputs=StructuredOutputs(**outputs))


def test_every_form_in_one_batch_beside_free_text():
    forms = [{"json_schema": SCHEMA}, {"regex": "[a-c]{3}-[0-9]+"}, {"choice": ("yes", "no")}]
    asked = [*(params(i, **form) for i, form in enumerate(forms)), SamplingParams(seed=3, max_tokens=20)]
    served = llm(max_num_seqs=8, max_num_batched_tokens=16)
    data, pattern, choice, free = served.generate(random_prompts([5, 9, 3, 7]), asked)
    for completion in data.outputs:
        assert completion.finish_reason == "stop"
        jsonschema.validate(json.loads(completion.text), SCHEMA, format_checker=jsonschema.FormatChecker(("date",)))
    assert all(re.fullmatch("[a-c]{3}-[0-9]+", c.text) for c in pattern.outputs if c.finish_reason == "stop")
    assert all(c.text in ("yes", "no") for c in choice.outputs)
    alone = llm().generate(random_prompts([5, 9, 3, 7])[3:], asked[3])[0]
    assert free.outputs[0].token_ids == alone.outputs[0].token_ids


def test_greedy_decoding_ends_although_the_model_never_would():
    greedy = SamplingParams(temperature=0, max_tokens=300, structured_outputs=StructuredOutputs(json_schema=SCHEMA))
    (output,) = llm().generate(["{"], greedy)
    assert output.outputs[0].finish_reason == "stop"
    jsonschema.validate(json.loads(output.outputs[0].text), SCHEMA)


def test_a_form_that_cannot_be_kept_is_told():
    with pytest.raises(RequestError, match="json_schema/properties/a/not"):
        llm().generate(["x"], params(0, json_schema={"properties": {"a": {"not": {}}}}))


def test_a_required_call_is_read_by_the_parser():
    tools = [{"type": "function", "function": {"name": "book", "parameters": SCHEMA}}]
    tool_format = TOOL_FORMATS["hermes"]
    grammar = tool_grammar(tools, "required", tool_format, parallel_tool_calls=False).grammar
    (output,) = llm().generate(["Book it."], params(5, grammar=grammar))
    for completion in output.outputs:
        parser = OutputParser(tool_format, tools=tools)
        start, arguments = [*parser.add(completion.text), *parser.finish()]
        assert start.name == "book"
        jsonschema.validate(json.loads(arguments.text), SCHEMA)
