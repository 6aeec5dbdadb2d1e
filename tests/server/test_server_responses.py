"""`/v1/responses` by the official client, strictly: items, typed events, stored conversations."""

import json

import httpx
import openai
import pytest
from scripted_engine import ScriptedEngine

from lmworks.core.errors import EngineError
from lmworks.core.sampling import StructuredOutputs
from lmworks.server.config import AppConfig
from lmworks.server.response_store import ResponseStore, StoredResponse
from lmworks.server.serve import listen, run_in_background
from lmworks.server.served_model import ServedModel

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<tool_call></tool_call><|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture
def engine(tokenizer):
    return ScriptedEngine(tokenizer.with_chat_template(TEMPLATE), "Hello", max_model_len=400)


@pytest.fixture
def client(engine):
    with (
        listen("127.0.0.1", 0) as listener,
        run_in_background({"m": ServedModel("m", engine)}, AppConfig(), listener) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0, _strict_response_validation=True) as c,
    ):
        yield c


def prompt_of(engine):
    return engine.tokenizer.decode(engine.asked[-1][0], skip_special_tokens=False)


def test_a_text_in_and_a_message_out(client, engine, tokenizer):
    answer = client.responses.create(
        model="m", input="Hi", instructions="Be brief.", temperature=0.5, top_p=0.9, max_output_tokens=50,
        metadata={"a": "b"}, user="me", reasoning={"effort": "low"}, truncation="disabled",
        extra_body={"top_k": 5, "seed": 3},
    )  # fmt: skip
    assert (answer.status, answer.output_text) == ("completed", "Hello")
    assert answer.id.startswith("resp_")
    assert answer.usage.input_tokens == len(engine.asked[0][0])
    assert answer.usage.output_tokens == len(tokenizer.encode("Hello"))
    assert "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>" in prompt_of(engine)
    params = engine.asked[0][1]
    assert (params.temperature, params.top_p, params.max_tokens, params.top_k, params.seed) == (0.5, 0.9, 50, 5, 3)
    assert (answer.metadata, answer.instructions, answer.max_output_tokens) == ({"a": "b"}, "Be brief.", 50)


def test_too_few_tokens_leave_it_incomplete(client):
    answer = client.responses.create(model="m", input="Hi", max_output_tokens=1)
    assert answer.status == answer.output[0].status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize("reply", ["Hello", f"<think>Hm.</think>Let me see.{CALL}\n{CALL}", "<think>Hm</think>Yes", ""])
def test_events_rebuild_the_response(client, engine, reply):
    engine.reply = reply
    events = list(client.responses.create(model="m", input="Hi", tools=[TOOL], stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert [e.type for e in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    items = events[-1].response.output
    texts, done, calls = {}, {}, {}
    for event in events:
        if event.type in ("response.output_text.delta", "response.reasoning_text.delta"):
            texts[event.output_index] = texts.get(event.output_index, "") + event.delta
        elif event.type == "response.function_call_arguments.delta":
            calls[event.output_index] = calls.get(event.output_index, "") + event.delta
        elif event.type == "response.output_item.done":
            done[event.output_index] = event.item
    assert list(done.values()) == items
    for index, item in enumerate(items):
        if item.type == "function_call":
            assert calls[index] == item.arguments
        else:
            assert texts.get(index, "") == item.content[0].text
    added = [e.item.id for e in events if e.type == "response.output_item.added"]
    assert added == [item.id for item in items]
    whole = client.responses.create(model="m", input="Hi", tools=[TOOL])
    assert [item.type for item in whole.output] == [item.type for item in items]
    assert whole.output_text == events[-1].response.output_text
    assert whole.usage == events[-1].response.usage


def test_the_client_s_own_stream_helper_agrees(client, engine):
    engine.reply = f"Let me see.{CALL}"
    with client.responses.stream(model="m", input="Hi", tools=[TOOL]) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["message", "function_call"]
    assert json.loads(final.output[1].arguments) == {"city": "Paris"}


def test_a_conversation_goes_on_with_its_calls(client, engine):
    engine.reply = f"<think>Hm.</think>{CALL}"
    first = client.responses.create(model="m", input="Weather?", tools=[TOOL])
    call = next(item for item in first.output if item.type == "function_call")
    engine.reply = "Sunny."
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    second = client.responses.create(
        model="m", input=[output], previous_response_id=first.id, tools=[TOOL], instructions="Be kind."
    )
    assert second.output_text == "Sunny."
    prompt = prompt_of(engine)
    assert '<think>Hm.</think><tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>' in prompt
    assert prompt.index("Weather?") < prompt.index("<|im_start|>tool\nsun")
    third = client.responses.create(model="m", input="Thanks", previous_response_id=second.id)
    assert "Weather?" in prompt_of(engine)
    assert "Sunny." in prompt_of(engine)
    assert "Be kind." not in prompt_of(engine), "instructions are not carried over"
    items = [item.model_dump() if hasattr(item, "model_dump") else item for item in first.output]
    by_hand = [{"role": "user", "content": "Weather?"}, *items, output]
    client.responses.create(model="m", input=by_hand, tools=[TOOL], instructions="Be kind.")
    assert prompt_of(engine) == prompt
    assert client.responses.retrieve(third.id) == third
    assert [i.type for i in client.responses.input_items.list(second.id).data] == ["function_call_output"]
    client.responses.delete(third.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(third.id)


def test_responses_are_their_owner_s_alone(client):
    mine = client.responses.create(model="m", input="Hi")
    unkept = client.responses.create(model="m", input="Hi", store=False)
    other = client.with_options(api_key="other")
    with pytest.raises(openai.NotFoundError):
        other.responses.retrieve(mine.id)
    with pytest.raises(openai.BadRequestError) as caught:
        other.responses.create(model="m", input="Hi", previous_response_id=mine.id)
    assert caught.value.code == "previous_response_not_found"
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="m", input="Hi", previous_response_id=unkept.id)


def test_the_store_is_bounded():
    store = ResponseStore(max_responses=3, max_characters=100)
    for number in range(5):
        store.put(str(number), StoredResponse("me", "", [], [], 10))
    assert [store.get(str(n), "me") is not None for n in range(5)] == [False, False, True, True, True]
    store.put("large", StoredResponse("me", "", [], [], 95))
    assert store.get("4", "me") is None
    assert store.get("large", "me") is not None
    assert store.delete("large", "you") is False


def test_structure_logprobs_and_truncation(client, engine):
    form = {"type": "json_schema", "name": "n", "schema": {"type": "array"}}
    answer = client.responses.create(model="m", input="Hi", text={"format": form})
    assert engine.asked[-1][1].structured_outputs.grammar or engine.asked[-1][1].structured_outputs == (
        StructuredOutputs(json_schema={"type": "array"})
    )
    assert answer.text.format.name == "n"
    answer = client.responses.create(model="m", input="Hi", include=["message.output_text.logprobs"], top_logprobs=2)
    logprobs = answer.output[0].content[0].logprobs
    assert b"".join(bytes(entry.bytes) for entry in logprobs).decode() == "Hello"
    assert len(logprobs[0].top_logprobs) == 2
    long = [{"role": "user", "content": f"{number} " * 20} for number in range(20)]
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="m", input=long)
    assert caught.value.code == "context_length_exceeded"
    client.responses.create(model="m", input=long, truncation="auto", max_output_tokens=10)
    assert "19 19" in prompt_of(engine)
    assert "0 0 0" not in prompt_of(engine)
    assert 300 < len(engine.asked[-1][0]) <= 390, "as much as fits"


def test_a_failure_in_mid_stream_is_an_event(client, engine, caplog):
    engine.error, engine.error_after = EngineError("the engine is broken"), 2
    *_, last = client.responses.create(model="m", input="Hi there", stream=True)
    assert last.type == "response.failed"
    assert last.response.error.message == "the engine is broken."


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [3]}, "input"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [3]}]}, "input[0].content"),
        ({"input": [{"type": ["x"], "role": "user"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"background": True}, "background"),
        ({"top_logprobs": 99}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ],
)
def test_bad_input(client, engine, body, param):
    response = httpx.post(f"{client.base_url}responses", json={"model": "m", "input": "Hi", **body})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert engine.asked == []
