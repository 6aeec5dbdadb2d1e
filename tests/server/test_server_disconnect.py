"""A client that goes away takes its request with it."""

import json
import socket
from urllib.parse import urlsplit

import httpx
import pytest
from waiting import until

from lmworks.server.journal import find_response

BODY = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}


def post_and_hang_up(url, body, engine, *, after_bytes=0):
    where = urlsplit(url)
    data = json.dumps(body).encode()
    head = f"POST {body.pop('path', '/v1/chat/completions')} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection((where.hostname, where.port)) as raw:
        raw.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        received = b""
        while len(received) < after_bytes:
            received += raw.recv(4096)
        until(lambda: engine.running)
    return received


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_before_the_first_token(url, engine, stream):
    engine.first_pause = 30
    post_and_hang_up(url, {**BODY, "stream": stream}, engine)
    until(lambda: engine.aborted and not engine.running)


def test_leaving_in_mid_stream(url, engine, journal):
    engine.pause = 0.2
    received = post_and_hang_up(url, {**BODY, "stream": True}, engine, after_bytes=900)
    until(lambda: engine.aborted and not engine.running)
    response_id = json.loads(received.split(b"data: ")[1].splitlines()[0])["id"]
    until(lambda: find_response(journal, response_id))
    entry = find_response(journal, response_id)
    assert entry.finish_reasons == ["abort"]
    assert 0 < entry.completion_tokens < 10


def test_leaving_during_a_whole_answer_of_many_prompts(url, engine):
    engine.pause = 0.2
    body = {"path": "/v1/completions", "model": "talker", "prompt": ["a", "b", "c"]}
    where = dict(body)
    post_and_hang_up(url, where, engine)
    until(lambda: len(engine.aborted) == 3 and not engine.running)


def test_leaving_in_the_middle_of_the_body(url, engine):
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port)) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        raw.sendall(b'Content-Length: 1000\r\n\r\n{"model":')
    assert httpx.get(f"{url}/health").status_code == 200
    assert engine.asked == []


def test_finished_requests_are_not_aborted(url, engine):
    assert httpx.post(f"{url}/v1/chat/completions", json=BODY).status_code == 200
    assert "[DONE]" in httpx.post(f"{url}/v1/chat/completions", json={**BODY, "stream": True}).text
    assert engine.aborted == []
