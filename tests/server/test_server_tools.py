"""Tools, thoughts and structure over HTTP: what the model sees of them, and what the client gets back."""

import json

import openai
import pytest
from scripted_engine import ScriptedEngine

from lmworks.core.sampling import StructuredOutputs
from lmworks.server.config import AppConfig
from lmworks.server.serve import listen, run_in_background
from lmworks.server.served_model import ServedModel

ASK = [{"role": "user", "content": "Weather in Paris?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
HERMES = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "Answer in <tool_call></tool_call>.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'
CALLS = f"<think>Hm.</think>Let me see.<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>"


@pytest.fixture
def talker(tokenizer):
    """An engine whose template knows tools and thoughts, and a strict client of its server."""
    engine = ScriptedEngine(tokenizer.with_chat_template(HERMES), CALLS, max_model_len=2000)
    plain = ScriptedEngine(tokenizer, f"[{CALL}]", max_model_len=2000)
    models = {"talker": ServedModel("talker", engine), "plain": ServedModel("plain", plain)}
    with (
        listen("127.0.0.1", 0) as listener,
        run_in_background(models, AppConfig(), listener) as server,
        openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="k", max_retries=0, _strict_response_validation=True
        ) as client,
    ):
        yield engine, plain, client


def prompt_of(engine, number=-1):
    return engine.tokenizer.decode(engine.asked[number][0], skip_special_tokens=False)


def test_calls_and_thoughts_of_a_whole_answer(talker):
    engine, _, client = talker
    answer = client.chat.completions.create(model="talker", messages=ASK, tools=[TOOL])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert choice.message.reasoning == choice.message.reasoning_content == "Hm."
    assert [(c.type, c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls] == [
        ("function", "weather", {"city": "Paris"})
    ] * 2
    assert len({call.id for call in choice.message.tool_calls}) == 2
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0
    assert '"name": "weather"' in prompt_of(engine)


def test_a_stream_gives_the_same_calls_in_pieces(talker):
    _, _, client = talker
    whole = client.chat.completions.create(model="talker", messages=ASK, tools=[TOOL]).choices[0].message
    content, reasoning, calls, reasons = "", "", {}, []
    for chunk in client.chat.completions.create(model="talker", messages=ASK, tools=[TOOL], stream=True):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning", None) or ""
        reasons += [choice.finish_reason] if choice.finish_reason else []
        for piece in choice.delta.tool_calls or []:
            if piece.index not in calls:
                assert piece.id.startswith("call_")
                assert piece.type == "function"
                calls[piece.index] = [piece.function.name, ""]
            else:
                assert (piece.id, piece.function.name) == (None, None), "only the first piece names the call"
            calls[piece.index][1] += piece.function.arguments
    assert (content, reasoning, reasons) == (whole.content, whole.reasoning, ["tool_calls"])
    assert list(calls.values()) == [[c.function.name, c.function.arguments] for c in whole.tool_calls]


def test_without_tools_a_call_is_text_and_thoughts_can_be_left_out(talker):
    engine, _, client = talker
    answer = client.chat.completions.create(
        model="talker", messages=ASK, tools=[TOOL], tool_choice="none", extra_body={"include_reasoning": False}
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content.count("<tool_call>") == 2
    assert getattr(answer.choices[0].message, "reasoning", None) is None
    assert "weather" not in prompt_of(engine)


def test_one_call_at_a_time(talker):
    _, _, client = talker
    ask = {"model": "talker", "messages": ASK, "tools": [TOOL], "parallel_tool_calls": False}
    assert len(client.chat.completions.create(**ask).choices[0].message.tool_calls) == 1
    chunks = client.chat.completions.create(**ask, stream=True)
    assert {call.index for c in chunks for call in c.choices[0].delta.tool_calls or []} == {0}


def test_a_template_without_tools_gets_them_described(talker):
    _, plain, client = talker
    system = {"role": "system", "content": "Be brief."}
    answer = client.chat.completions.create(model="plain", messages=[system, *ASK], tools=[TOOL])
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"
    assert answer.choices[0].message.content is None
    assert prompt_of(plain).startswith("<|im_start|>system\nBe brief.\n\nYou can call functions.")
    assert '"city"' in prompt_of(plain)


def test_earlier_calls_and_their_results_reach_the_template(talker):
    engine, _, client = talker
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    client.chat.completions.create(model="talker", messages=messages, tools=[TOOL])
    assert CALL.replace('"name": "weather", ', "")[1:-1] in prompt_of(engine)
    assert "<|im_start|>tool\nsunny<|im_end|>" in prompt_of(engine)


def test_switches_of_the_template(talker):
    engine, _, client = talker
    for body in ({"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}):
        client.chat.completions.create(model="talker", messages=ASK, extra_body=body)
        assert prompt_of(engine).endswith("<think></think>")
    client.chat.completions.create(model="talker", messages=ASK, reasoning_effort="high")
    assert prompt_of(engine).endswith("assistant\n")


def test_the_last_message_is_continued_and_echoed(talker):
    _, plain, client = talker
    messages = [*ASK, {"role": "assistant", "content": "The answer"}]
    body = {"continue_final_message": True, "add_generation_prompt": False, "echo": True}
    answer = client.chat.completions.create(model="plain", messages=messages, extra_body=body)
    assert answer.choices[0].message.content.startswith("The answer[")
    assert prompt_of(plain).endswith("assistant\nThe answer")
    chunks = list(client.chat.completions.create(model="plain", messages=messages, extra_body=body, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == answer.choices[0].message.content


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}}},
            {"json_schema": {"type": "array"}},
        ),
        ({"extra_body": {"guided_json": {"type": "array"}}}, {"json_schema": {"type": "array"}}),
        ({"extra_body": {"guided_regex": "a+"}}, {"regex": "a+"}),
        ({"extra_body": {"guided_choice": ["a", "b"]}}, {"choice": ("a", "b")}),
        ({"extra_body": {"structured_outputs": {"grammar": 'start: "a"'}}}, {"grammar": 'start: "a"'}),
        ({"extra_body": {"structured_outputs": {"json": '{"type": "array"}'}}}, {"json_schema": '{"type": "array"}'}),
        ({"response_format": {"type": "text"}}, None),
    ],
)
def test_every_name_of_structured_output(talker, asked, expected):
    _, plain, client = talker
    client.chat.completions.create(model="plain", messages=ASK, **asked)
    assert plain.asked[-1][1].structured_outputs == (None if expected is None else StructuredOutputs(**expected))
