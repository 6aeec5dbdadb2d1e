"""Who gets in: keys, shares, slow clients, too many of them."""

import asyncio
import json
import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest
from scripted_engine import ScriptedEngine

from lmworks.core.errors import RateLimitError, ServerError
from lmworks.engine.outputs import Delta
from lmworks.server.admission import Turnstile
from lmworks.server.config import AppConfig, ServeConfig
from lmworks.server.keys import Keys
from lmworks.server.serve import listen, run_in_background
from lmworks.server.served_model import ServedModel

BODY = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def narrow(tokenizer):
    """A server with tight limits on connections."""
    engine = ScriptedEngine(tokenizer)
    config = ServeConfig(
        models={"talker": "nowhere"}, header_timeout=0.4, body_timeout=0.6, max_header_bytes=2000, max_connections=8
    )
    with (
        listen("127.0.0.1", 0) as listener,
        run_in_background({"talker": ServedModel("talker", engine)}, config, listener) as server,
    ):
        yield server, engine


def connect(url):
    where = urlsplit(url)
    raw = socket.create_connection((where.hostname, where.port), timeout=10)
    return raw


def read_all(raw):
    data = b""
    while piece := raw.recv(4096):
        data += piece
    return data


@pytest.mark.parametrize("given", [None, "Bearer", "Bearer wrong", "wrong", "Basic first", "Bearer first second", "é"])
def test_wrong_keys_are_refused(start, engine, given, caplog):
    url = start(api_key="first").url
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    for path in ("/v1/models", CHAT, "/tokenize", "/no/such/route"):
        response = httpx.post(url + path, json=BODY, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert engine.asked == []
    assert "first" not in caplog.text + response.text


def test_keys_come_from_settings_file_and_environment(tmp_path, monkeypatch, start):
    (tmp_path / "keys").write_text("second\n\n third \n")
    monkeypatch.setenv("LMWORKS_API_KEY", "fourth, fifth")
    url = start(api_key="first", api_key_file=tmp_path / "keys", admin_api_key="admin").url
    for key in ("first", "second", "third", "fourth", "fifth", "admin"):
        assert httpx.get(f"{url}/v1/models", headers=bearer(key)).status_code == 200
    assert httpx.get(f"{url}/v1/models", headers=bearer("sixth")).status_code == 401
    for path in ("/", "/live", "/ready", "/health", "/version", "/load", "/metrics", "/page/app.js"):
        assert httpx.get(url + path).status_code == 200
    (tmp_path / "keys").write_text(" \n")
    with pytest.raises(ServerError, match="holds no key"):
        Keys.of(AppConfig(api_key_file=tmp_path / "keys"))


def test_keys_are_never_shown(tmp_path):
    config = ServeConfig(models={"m": tmp_path}, api_key="top-secret", admin_api_key="more-secret")
    for text in (repr(config), json.dumps(config.to_dict()), repr(Keys.of(config))):
        assert "secret" not in text


def test_admin_routes_need_the_admin_key(start, engine):
    url = start(api_key="user", admin_api_key="admin").url
    body = {"model": "talker", "path": "/weights"}
    assert httpx.post(f"{url}/update_weights", json=body, headers=bearer("user")).status_code == 401
    assert engine.called == []
    several = httpx.post(f"{url}/update_weights", json={"path": "/weights"}, headers=bearer("admin"))
    assert several.status_code == 400
    assert "talker" in several.json()["error"]["message"]
    engine.answer = {"version": "2"}
    done = httpx.post(f"{url}/update_weights", json=body, headers=bearer("admin"))
    assert done.json() == {"model": "talker", "result": {"version": "2"}}
    assert engine.called == [("update_weights", {"path": "/weights"})]


def test_without_an_admin_key_there_are_no_admin_routes(start):
    url = start().url
    assert httpx.post(f"{url}/update_weights", json={"path": "x"}).status_code == 404
    assert "/update_weights" not in httpx.get(f"{url}/openapi.json").json()["paths"]


def test_one_key_s_concurrency_does_not_touch_another_s(start, engine):
    url = start(max_concurrent_requests_per_key=1).url
    engine.pause = 0.05
    running = threading.Thread(target=httpx.post, args=(url + CHAT,), kwargs={"json": BODY, "headers": bearer("a")})
    running.start()
    while not engine.running:
        time.sleep(0.01)
    refused = httpx.post(url + CHAT, json=BODY, headers=bearer("a"))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert httpx.get(f"{url}/ready", headers=bearer("a")).status_code == 200
    assert httpx.get(f"{url}/load").json() == {"server_load": 1}
    assert httpx.post(url + CHAT, json=BODY, headers=bearer("b")).status_code == 200
    running.join()
    assert httpx.post(url + CHAT, json=BODY, headers=bearer("a")).status_code == 200


def test_requests_per_minute_refill_evenly():
    now = 0.0
    turnstile = Turnstile(AppConfig(max_requests_per_minute_per_key=6), clock=lambda: now)
    for _ in range(6):
        turnstile.enter("a")
    with pytest.raises(RateLimitError) as refused:
        turnstile.enter("a")
    assert refused.value.retry_after_seconds == 10
    turnstile.enter("b")
    now = 10.0
    turnstile.enter("a")
    with pytest.raises(RateLimitError):
        turnstile.enter("a")
    for client in "aaaaaaab":
        turnstile.leave(client)
    assert turnstile.inside == 0


@pytest.mark.parametrize(
    "sent",
    [b"", b"G", b"GET /live HTTP/1.1\r\nHost:", b"\r\n\r\n",
     b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
     b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{"],
)  # fmt: skip
def test_a_client_that_stops_sending_is_dropped(narrow, sent):
    server, engine = narrow
    began = time.monotonic()
    with connect(server.url) as raw:
        raw.sendall(sent)
        said = read_all(raw)
    assert time.monotonic() - began < 3
    assert said == b"" or said.startswith((b"HTTP/1.1 408", b"HTTP/1.1 415"))
    assert engine.asked == []


def test_drip_by_drip_does_not_help_and_others_are_served(narrow):
    """Slow loris: a byte now and then resets no clock."""
    server, _ = narrow
    ended = []

    def drip():
        with connect(server.url) as raw:
            began = time.monotonic()
            try:
                for byte in b"GET / HTTP/1.1\r\nX-Slow: " + b"a" * 1000:
                    raw.sendall(bytes([byte]))
                    time.sleep(0.05)
            except OSError:
                ended.append(time.monotonic() - began)

    threads = [threading.Thread(target=drip) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert httpx.post(server.url + CHAT, json=BODY).status_code == 200
    for thread in threads:
        thread.join()
    assert len(ended) == 5
    assert max(ended) < 3


def test_a_slow_answer_is_no_slow_client(narrow):
    server, engine = narrow
    engine.first_pause = 1.5
    assert httpx.post(server.url + CHAT, json=BODY).status_code == 200
    with httpx.Client() as client:  # nor is a connection that is used again
        for _ in range(3):
            engine.first_pause = 0.3
            assert client.post(server.url + CHAT, json=BODY).status_code == 200


def test_headers_too_large(narrow):
    server, _ = narrow
    for pieces in (1, 20):
        with connect(server.url) as raw:
            raw.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\nX-Big: ")
            with suppress(OSError):  # it hangs up while more is sent
                for _ in range(pieces):
                    raw.sendall(b"x" * (4000 // pieces))
                    time.sleep(0.005)
                raw.sendall(b"\r\n\r\n")
            try:
                said = raw.recv(4096)
            except ConnectionResetError:
                said = b""
            assert said.startswith(b"HTTP/1.1 431") or (pieces > 1 and not said)
    assert httpx.get(f"{server.url}/live").status_code == 200


def test_too_many_connections(narrow):
    server, _ = narrow
    held = [connect(server.url) for _ in range(8)]
    for raw in held:
        raw.sendall(b"GET")
    time.sleep(0.1)
    with connect(server.url) as raw:
        said = read_all(raw)
    assert said.startswith(b"HTTP/1.1 503")
    assert b"Retry-After: 1" in said
    for raw in held:
        raw.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{server.url}/live").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    pytest.fail("nobody gets in any more")


def test_a_client_that_does_not_read_is_dropped(narrow):
    server, engine = narrow
    dropped = threading.Event()

    async def gush(prompt_token_ids, params, request_id, **_):
        try:
            for count in range(10_000):
                await asyncio.sleep(0)
                yield Delta(request_id, 0, "x" * 10_000, (7,), None, None, 1, count)
        finally:
            dropped.set()

    engine.generate = gush
    with connect(server.url) as raw:
        body = json.dumps({**BODY, "stream": True}).encode()
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        raw.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert dropped.wait(10)
    assert httpx.get(f"{server.url}/load").json() == {"server_load": 0}
