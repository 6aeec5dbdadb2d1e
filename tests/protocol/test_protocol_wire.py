"""The wire's schemas by themselves: what they accept, refuse, leave out."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core import errors
from lmworks.core.generation import TokenLogprob
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams
from lmworks.protocol.chat import ChatCompletionRequest
from lmworks.protocol.chat_response import ChatChunkChoice, ChatCompletionChunk, ChatDelta
from lmworks.protocol.completions import CompletionRequest
from lmworks.protocol.errors import InvalidRequestError, error_reply
from lmworks.protocol.logprobs import LogprobLists, chat_logprobs
from lmworks.protocol.sse import event
from lmworks.protocol.usage import Usage
from lmworks.protocol.wire import parse_request

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields, "tools", "response_format"})
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "tool", "x"]), "content": JSON})
BODIES = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5)


def chat(**fields):
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse_request(ChatCompletionRequest, json.dumps(body).encode())


def text(**fields):
    return parse_request(CompletionRequest, json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


@settings(max_examples=150, deadline=None)
@given(BODIES, st.none() | JSON | st.lists(MESSAGE, max_size=2), st.booleans())
def test_any_json_object_is_read_or_refused_by_name(fields, messages, with_model):
    body = {**fields, "messages": messages, **({"model": "m", "prompt": "p"} if with_model else {})}
    for schema in (ChatCompletionRequest, CompletionRequest):
        refusal = None
        try:
            assert isinstance(parse_request(schema, json.dumps(body).encode()).sampling_params(), SamplingParams)
        except InvalidRequestError as error:
            refusal = error
        assert refusal is None or (refusal.param and refusal.param in str(refusal))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=30))
def test_any_bytes_are_read_or_refused(body):
    with pytest.raises(InvalidRequestError):
        parse_request(ChatCompletionRequest, body)


def test_defaults_are_those_of_openai():
    assert chat().sampling_params() == SamplingParams()
    assert text().sampling_params() == SamplingParams(max_tokens=16)


def test_nulls_mean_absent():
    nothing = dict.fromkeys(set(ChatCompletionRequest.model_fields) - {"model", "messages"})
    assert chat(**nothing).sampling_params() == SamplingParams()


def test_logprobs_of_both_endpoints():
    assert chat(logprobs=True).sampling_params().logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).sampling_params().logprobs == 4
    assert chat(logprobs=False).sampling_params().logprobs is None
    assert text(logprobs=0).sampling_params().logprobs == 0


def test_prompts_become_a_list():
    assert text(prompt="a").prompt == ["a"]
    assert text(prompt=["a", "b"]).prompt == ["a", "b"]
    assert text(prompt=[1, 2]).prompt == [[1, 2]]
    assert text(prompt=[[1], [2]]).prompt == [[1], [2]]


def test_messages_keep_what_templates_see():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    seen = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": [1]}}}
    asked = chat(
        messages=[
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "n"},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"},
            {"role": "tool", "content": "4", "tool_call_id": "c"},
        ]
    )
    assert asked.to_messages() == [
        Message(role="system", content="d"),
        Message(role="user", content="a\nb", name="n"),
        Message(role="assistant", content="", tool_calls=[seen], reasoning_content="hm"),
        Message(role="tool", content="4", tool_call_id="c"),
    ]


@pytest.mark.parametrize("name", ["functions", "audio", "chat_template", "web_search_options"])
def test_what_would_change_the_answer_is_refused_by_name(name):
    with pytest.raises(InvalidRequestError, match=name) as caught:
        chat(**{name: [{"type": "x"}]})
    assert caught.value.code == "unsupported_parameter"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequestError("p", param="x", code="c", status=413), 413, "c"),
        (errors.RequestTooLongError("p"), 400, "context_length_exceeded"),
        (errors.RequestError("p"), 400, None),
        (errors.ModelNotFoundError("p"), 404, "model_not_found"),
        (errors.EngineOverloadedError("p"), 503, "engine_overloaded"),
        (errors.DeadlineExceededError("p"), 408, "request_timeout"),
        (errors.EngineError("p"), 500, None),
        (ZeroDivisionError("/secret/path"), 500, None),
    ],
)
def test_errors_have_a_status_and_openai_s_body(error, status, code):
    reply = error_reply(error)
    body = json.loads(reply.to_json())["error"]
    assert (reply.status, body["code"]) == (status, code)
    assert body["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert "secret" not in body["message"]
    assert ("Retry-After" in reply.headers) == (status == 503)


def test_chunks_leave_out_what_openai_leaves_out():
    def chunk(delta, **rest):
        choices = [ChatChunkChoice(index=0, delta=delta)]
        values = ChatCompletionChunk(id="i", created=1, model="m", system_fingerprint="f", choices=choices, **rest)
        return json.loads(values.model_dump_json())

    opening = chunk(ChatDelta(role="assistant", content=""))
    assert opening["choices"][0] == {
        "index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None,
    }  # fmt: skip
    assert "usage" not in opening
    assert chunk(ChatDelta())["choices"][0]["delta"] == {}
    assert chunk(ChatDelta(), usage=Usage.of(2, 3))["usage"]["total_tokens"] == 5


def test_logprobs_of_half_a_character():
    pieces = {1: b"\xf0\x9f", 2: b"\x98\x80", 3: b"a"}
    entries = [TokenLogprob(1, -0.5, ((1, -0.5), (3, -math.inf))), TokenLogprob(2, 0.0), TokenLogprob(3, -1.0)]
    chat_shape = chat_logprobs(entries, pieces.__getitem__)
    assert b"".join(bytes(e.bytes) for e in chat_shape.content).decode() == "😀a"
    assert chat_shape.content[0].top_logprobs[1].logprob == -9999.0
    writer = LogprobLists(pieces.__getitem__)
    lists = writer.add([1, 2, 3], entries)
    assert lists.tokens == ["bytes:\\xf0\\x9f", "bytes:\\x98\\x80", "a"], "no two parts of characters look alike"
    assert lists.text_offset == [0, 0, 1]
    assert lists.top_logprobs[0] == {"bytes:\\xf0\\x9f": -0.5, "a": -9999.0}
    assert writer.add([3], [None]).text_offset == [2], "the next chunk goes on where the last one ended"
    json.loads(lists.model_dump_json())


def test_events_are_one_line_each():
    assert event('{"a": "\\n"}') == 'data: {"a": "\\n"}\n\n'
    with pytest.raises(AssertionError):
        event("a\nb")
