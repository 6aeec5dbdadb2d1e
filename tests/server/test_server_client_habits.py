"""What clients of other servers are used to, and what servers behind load balancers and browsers are asked."""

import json
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest

from lmworks.protocol.rerank import ScoreRequest
from lmworks.protocol.wire import parse_request
from lmworks.server.response_store import ResponseStore, StoredResponse

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


def events_of(response):
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("named", [{}, {"model": None}, {"model": ""}])
def test_without_a_name_the_first_model_answers(http, named):
    assert http.post(CHAT, json={**ASK, **named}).json()["model"] == "talker"
    assert http.post("/v1/responses", json={"input": "hi", **named}).json()["model"] == "talker"
    assert http.post(COMPLETIONS, json={"prompt": "hi", **named}).json()["model"] == "talker"
    assert http.post("/tokenize", json={"prompt": "hi", **named}).status_code == 200


def test_a_whole_number_may_be_written_with_a_point(http, engine):
    body = '{"prompt": "hi", "max_tokens": 2.0, "seed": 7.0, "temperature": 1.0}'
    answer = http.post(COMPLETIONS, content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["usage"]["completion_tokens"] == 2
    assert engine.asked[0][1].seed == 7


@pytest.mark.parametrize(("side", "kept"), [("left", slice(-4, None)), ("right", slice(4)), (None, slice(-4, None))])
def test_a_prompt_is_cut_on_the_side_asked_for(http, engine, side, kept):
    ids = list(range(8, 16))
    http.post(COMPLETIONS, json={"prompt": ids, "truncate_prompt_tokens": 4, "truncation_side": side})
    assert engine.asked[0][0] == ids[kept]


def test_tokens_are_named_by_their_ids(http):
    extras = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    said = http.post(CHAT, json={**ASK, **extras, "logprobs": True, "top_logprobs": 1}).json()["choices"][0]
    entries = said["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == [f"token_id:{token}" for token in said["token_ids"]]
    assert entries[0]["top_logprobs"][0]["token"] == entries[0]["token"]
    said = http.post(COMPLETIONS, json={"prompt": "hi", "logprobs": 1, **extras}).json()["choices"][0]
    names = [f"token_id:{token}" for token in said["token_ids"]]
    assert said["logprobs"]["tokens"] == names
    assert names[0] in said["logprobs"]["top_logprobs"][0]


def test_the_chunk_with_the_role_has_used_no_completion_token(http):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events_of(http.post(CHAT, json={**ASK, "stream": True, "stream_options": options}))
    used = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert used[0] == 0
    assert used == sorted(used)
    assert used[-1] == 3
    assert all(
        c["usage"]["total_tokens"] == c["usage"]["prompt_tokens"] + c["usage"]["completion_tokens"] for c in chunks
    )


def test_a_json_object_may_have_a_schema(http, engine):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    http.post(CHAT, json={**ASK, "response_format": {"type": "json_object", "schema": schema}})
    assert engine.asked[0][1].structured_outputs.json_schema == schema


@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
def test_pairs_to_score_go_by_every_name_vllm_gives_them(names):
    body = json.dumps({names[0]: "q", names[1]: ["a", "b"]}).encode()
    asked = parse_request(ScoreRequest, body)
    assert (asked.text_1, asked.text_2) == (["q"], ["a", "b"])


def test_one_id_for_two_requests_harms_neither(http, engine):
    engine.pause = 0.02
    answers = []

    def ask():
        answers.append(http.post(COMPLETIONS, json={"prompt": "hi", "request_id": "mine", "max_tokens": 12}))

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert [answer.json()["id"] for answer in answers] == ["cmpl-mine", "cmpl-mine"]
    assert len(set(engine.ids)) == 2


def test_clients_that_choose_one_id_keep_their_own_responses():
    store = ResponseStore()
    for owner in ("ann", "bob"):
        store.put("resp_1", StoredResponse(owner, f"of {owner}", (), (), 1))
    assert store.get("resp_1", "ann").body == "of ann"
    assert store.delete("resp_1", "bob")
    assert store.get("resp_1", "bob") is None
    assert store.get("resp_1", "ann") is not None


@pytest.mark.parametrize(("sent", "kept"), [("trace-1.a:b", True), ("a b", False), ("x" * 200, False)])
def test_a_client_may_name_its_request(http, sent, kept):
    told = http.get("/version", headers={"X-Request-Id": sent}).headers["x-request-id"]
    assert (told == sent) is kept
    assert kept or told.startswith("req_")


def test_probes_answer_heads_and_models_a_trailing_slash(http):
    for path in ("/live", "/ready", "/health"):
        response = http.head(path)
        assert (response.status_code, response.content) == (200, b"")
    assert http.get("/v1/models/").json() == http.get("/v1/models").json()


def test_a_browser_may_send_the_headers_of_its_sdk(start):
    url = start(cors_origins=["https://example.org"]).url
    asked = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    response = httpx.options(f"{url}/v1/responses/resp_1", headers=asked)
    assert response.status_code == 200
    assert "x-stainless-os" in response.headers["access-control-allow-headers"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_gets_an_error_like_all_others(url, data):
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=10) as raw:
        raw.sendall(data)
        answer = b""
        until = time.monotonic() + 10
        while (part := raw.recv(4096)) and time.monotonic() < until:
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_garbage_behind_a_request_does_not_break_into_its_answer(url, engine):
    engine.pause = 0.02
    body = json.dumps({"prompt": "hi", "stream": True, "max_tokens": 12}).encode()
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), timeout=10) as raw:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = raw.recv(4096)
        raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode())
        while part := raw.recv(4096):
            answer += part
    assert answer.count(b"HTTP/1.1 ") == 1
