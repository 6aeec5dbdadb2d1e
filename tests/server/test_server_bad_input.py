"""Whatever is sent, the answer is OpenAI's error body with the right status, and never a trace."""

import json
import socket
from urllib.parse import urlsplit

import httpx
import pytest
from scripted_engine import ScriptedEngine

from lmworks.core.errors import EngineError, EngineOverloadedError, RequestTooLongError
from lmworks.server.config import AppConfig
from lmworks.server.serve import listen, run_in_background
from lmworks.server.served_model import ServedModel

ASK = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}
JSON = {"Content-Type": "application/json"}
JSON_ROUTES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank", "/v1/score",
    "/tokenize", "/detokenize", "/v1/batches",
)  # fmt: skip


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, timeout=20) as http:
        yield http


@pytest.fixture(scope="module")
def patient(tokenizer):
    """One server for all that is refused before an engine hears of it."""
    engine = ScriptedEngine(tokenizer)
    with (
        listen("127.0.0.1", 0) as listener,
        run_in_background({"talker": ServedModel("talker", engine)}, AppConfig(), listener) as server,
        httpx.Client(base_url=server.url, timeout=20) as http,
    ):
        yield http
    assert engine.asked == []


def error_of(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert "/src/" not in response.text
    return error


def changed(**fields):
    return {k: v for k, v in {**ASK, **fields}.items() if v is not ...}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"model": "talker", "temperature": NaN}', b"\xff\xfe{}", b"[" * 100_000, b'{"a":%s}' % (b"9" * 5000),
     b'{"model":"\\ud800"}', b"[]", b"null", b'"text"', "{}".encode("utf-16")],
)  # fmt: skip
def test_a_body_that_is_no_json_object(patient, body):
    for path in JSON_ROUTES:
        assert error_of(patient.post(path, content=body, headers=JSON), 400)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 3}, "model"),
        ({"messages": ...}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": 1e999}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**9}, "messages"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"cat": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1e999}}, "logit_bias.1"),
        ({"stop_token_ids": [10**9]}, "stop_token_ids"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"logit_bias": {"\x00" * 1000: 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [999_999]}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words[0]"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"request_id": "a/b"}, "request_id"),
        ({"priority": "high"}, "priority"),
        ({"reasoning_effort": "most"}, "reasoning_effort"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "messages[0].tool_calls[0].function.name",
        ),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"continue_final_message": True}, "messages"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
def test_chat_fields(patient, fields, param):
    body = json.dumps(changed(**fields)).replace("Infinity", "1e999")
    assert error_of(patient.post("/v1/chat/completions", content=body, headers=JSON), 400)["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "x", "n": 3, "best_of": 2}, "best_of"),
        ({"prompt": "x", "stream": True, "best_of": 2}, "best_of"),
        ({"prompt": ["x"] * 2049}, "prompt"),
        ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x " * 300}, "prompt"),
    ],
)
def test_completion_fields(patient, fields, param):
    assert error_of(patient.post("/v1/completions", json={"model": "talker", **fields}), 400)["param"] == param


def test_a_schema_nested_without_end_is_refused_or_bounded(patient):
    deep = {}
    for _ in range(150):
        deep = {"type": "array", "items": deep}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep, "strict": True}}
    response = patient.post("/v1/chat/completions", json=changed(tools=[tool], tool_choice="required"))
    assert "nested" in error_of(response, 400)["message"]


def test_what_changes_nothing_is_accepted(http):
    body = changed(tools=[], tool_choice="auto", response_format={"type": "text"}, metadata={"a": "b"}, no_such_field=1,
                   temperature=None, stop=None, service_tier="auto", modalities=["text"])  # fmt: skip
    assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_routes_and_methods(http):
    assert "GET /nowhere" in error_of(http.get("/nowhere"), 404)["message"]
    response = http.get("/v1/completions")
    error_of(response, 405)
    assert response.headers["allow"] == "POST"
    error_of(http.get("/page/../app.py"), 404)
    error_of(http.get("/page/__init__.py"), 404)


def test_content_type_must_be_json(http):
    body = json.dumps(ASK)
    error_of(http.post("/v1/chat/completions", content=body), 415)
    error_of(http.post("/v1/chat/completions", content=body, headers={"Content-Type": "text/plain"}), 415)
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert http.post("/v1/chat/completions", content=body, headers=headers).status_code == 200


def test_a_body_over_the_limit(start, engine):
    url = start(max_body_bytes=2000).url
    body = json.dumps(changed(messages=[{"role": "user", "content": "x" * 5000}]))
    assert (
        "2000 bytes" in error_of(httpx.post(f"{url}/v1/chat/completions", content=body, headers=JSON), 413)["message"]
    )

    def endless():
        for _ in range(20):
            yield b"x" * 1000

    error_of(httpx.post(f"{url}/v1/chat/completions", content=endless(), headers=JSON), 413)
    assert engine.asked == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (EngineOverloadedError("the queue is full", "Try again later"), 503),
        (RequestTooLongError("too long"), 400),
        (EngineError("the engine is broken"), 500),
        (ValueError("secret detail at /home/someone"), 500),
    ],
)
def test_engine_errors_before_the_first_token(http, engine, error, status, stream, caplog):
    engine.error = error
    response = http.post("/v1/chat/completions", json=changed(stream=stream))
    assert "secret" not in error_of(response, status)["message"]
    assert ("retry-after" in response.headers) == (status == 503)
    assert engine.running == set()


def test_an_engine_error_in_mid_stream_is_an_event(http, engine, caplog):
    engine.error, engine.error_after = EngineError("the engine is broken"), 3
    response = http.post("/v1/chat/completions", json=changed(stream=True))
    *_, error, done, end = response.text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"
    assert (done, end) == ("data: [DONE]", "")


def test_bytes_that_are_no_http(url, http):
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as raw:
        raw.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")
    assert http.get("/health").json() == {"status": "ok"}
