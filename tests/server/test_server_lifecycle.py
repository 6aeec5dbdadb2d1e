"""Beginning, draining, ending, and coming back: what a load balancer and a service manager see."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import httpx
import pytest
import torch
from scripted_engine import ScriptedEngine
from waiting import until

from lmworks.core.errors import EngineUnavailableError, ServerError
from lmworks.models.build import build_model
from lmworks.models.hub import save_pretrained
from lmworks.proofs.tiny import LLAMA
from lmworks.server.config import AppConfig, ServeConfig
from lmworks.server.serve import listen, run_in_background, start_in_background
from lmworks.server.served_model import ServedModel

ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
LONG = {"model": "one", "prompt": "x", "max_tokens": 200, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    model = build_model(LLAMA.model_copy(update={"vocab_size": tokenizer.vocab_size}), seed=0)
    save_pretrained(model, folder, dtype=torch.float32)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def pair(folder):
    """Two models with settings of their own in one server."""
    models = {"one": {"path": folder, "aliases": ["uno"]}, "two": {"path": folder, "engine": {"max_model_len": 32}}}
    with start_in_background(ServeConfig.parse({"models": models, "port": 0})) as server:
        yield server


def status(url, path):
    return httpx.get(url + path, timeout=20).status_code


def engine_of(server, name):
    """The `AsyncLLM` behind a model of a server in this process."""
    return server._server.config.app.state.server.models[name].llm


def complete(url, model, **fields):
    body = {"model": model, "prompt": "Paris", "temperature": 0, "max_tokens": 4, **fields}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=30)


def test_models_are_told_apart(pair):
    listed = {m["id"]: m["max_model_len"] for m in httpx.get(f"{pair.url}/v1/models").json()["data"]}
    assert listed["two"] == 32
    assert listed["one"] == listed["uno"] > 32
    answers = [complete(pair.url, name).json() for name in ("one", "uno", "two")]
    assert [a["model"] for a in answers[:2]] == ["one", "one"]
    assert len({a["choices"][0]["text"] for a in answers}) == 1
    missing = complete(pair.url, "three")
    assert missing.status_code == 404
    assert "one, two" in missing.json()["error"]["message"]


def test_names_given_twice_are_refused(folder):
    models = {"one": folder, "two": {"path": folder, "aliases": ["one"]}}
    with pytest.raises(ServerError, match="one are given twice"):
        start_in_background(ServeConfig.parse({"models": models, "port": 0}))


def test_metrics_of_a_real_engine(pair):
    complete(pair.url, "one", prompt="Paris is the capital")
    text = httpx.get(f"{pair.url}/metrics").text
    for line in (
        'vllm:num_requests_running{engine="0",model_name="one"} 0.0',
        'vllm:request_success_total{engine="0",finished_reason="length",model_name="one"}',
        'vllm:request_queue_time_seconds_count{engine="0",model_name="one"}',
        'vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="one"}',
        'vllm:cache_config_info{block_size="16",engine="0",model_name="two",num_gpu_blocks=',
        'lmworks:roofline_ratio{engine="0",model_name="one"}',
    ):
        assert line in text


def test_a_killed_engine_gives_clean_errors_and_comes_back(pair):
    """One engine's death ends its own requests with an error and leaves the other model alone."""
    one, two = (engine_of(pair, name) for name in ("one", "two"))
    first, second, done = one.pid, two.pid, []

    def stream(model):
        with httpx.stream("POST", f"{pair.url}/v1/completions", json={**LONG, "model": model}, timeout=30) as response:
            lines = [line for line in response.iter_lines() if line]
            done.append((response.status_code, lines))

    def whole():
        done.append(httpx.post(f"{pair.url}/v1/completions", json={**LONG, "stream": False}, timeout=30))

    threads = [threading.Thread(target=stream, args=("one",)), threading.Thread(target=whole)]
    os.kill(first, signal.SIGSTOP)  # so that it cannot finish before it is killed
    for thread in threads:
        thread.start()
    until(lambda: httpx.get(f"{pair.url}/load").json()["server_load"] == 2)
    os.kill(first, signal.SIGKILL)
    for thread in threads:
        thread.join()
    for answer in done:
        code, body = (answer[0], "".join(answer[1])) if isinstance(answer, tuple) else (answer.status_code, answer.text)
        assert code == 503
        assert json.loads(body)["error"]["code"] == "engine_unavailable"
    assert status(pair.url, "/live") == 200
    assert status(pair.url, "/ready") == 503
    refused = complete(pair.url, "one")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert complete(pair.url, "two").status_code == 200
    until(lambda: status(pair.url, "/ready") == 200)
    assert complete(pair.url, "one").status_code == 200
    assert (one.pid != first, two.pid) == (True, second)


def test_an_engine_that_dies_in_mid_stream_ends_it_with_an_error_event(tokenizer):
    engine = ScriptedEngine(tokenizer)
    engine.error, engine.error_after = EngineUnavailableError("the engine's process was ended by SIGKILL"), 3
    with (
        listen("127.0.0.1", 0) as listener,
        run_in_background({"m": ServedModel("m", engine)}, AppConfig(), listener) as server,
    ):
        text = httpx.post(f"{server.url}/v1/chat/completions", json={**ASK, "stream": True}).text
    *_, error, done, end = text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_unavailable"
    assert (done, end) == ("data: [DONE]", "")


def test_a_draining_server_answers_probes_finishes_and_takes_nothing_new(tokenizer):
    engine = ScriptedEngine(tokenizer)
    engine.pause = 0.05
    texts = []
    with listen("127.0.0.1", 0) as listener:
        server = run_in_background({"m": ServedModel("m", engine)}, AppConfig(), listener, drain_seconds=10)
        url = server.url
        asking = threading.Thread(
            target=lambda: texts.append(httpx.post(f"{url}/v1/chat/completions", json={**ASK, "stream": True}).text)
        )
        asking.start()
        until(lambda: engine.running)
        server.drain()
        assert [status(url, path) for path in ("/live", "/health", "/ready")] == [200, 200, 503]
        refused = httpx.post(f"{url}/v1/chat/completions", json=ASK)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        asking.join()
        server.stop()
    assert texts[0].endswith("data: [DONE]\n\n")
    assert engine.aborted == []


@pytest.fixture
def process(folder):
    """A server as a process of its own, and its address once it is ready."""
    code = (
        "import sys; from lmworks.server.serve import serve, ServeConfig;"
        "serve(ServeConfig(models={'one': sys.argv[1]}, port=0, drain_seconds=20))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        url = next(line.split()[3] for line in process.stderr if "serves on" in line)
        yield process, url
        process.kill()


@pytest.mark.slow
def test_a_second_signal_means_now(process):
    """Also when the engine is stuck: here it is stopped, so that the running stream cannot end."""
    process, url = process
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    engine = int(listed.stdout)
    os.kill(engine, signal.SIGSTOP)

    def ask():
        with suppress(httpx.TransportError):
            httpx.post(f"{url}/v1/completions", json=LONG, timeout=30)

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: httpx.get(f"{url}/load").json()["server_load"] == 1)
    process.send_signal(signal.SIGTERM)
    until(lambda: status(url, "/ready") == 503)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    asking.join()


def test_spans_tell_of_model_usage_and_latency(start, engine, monkeypatch):
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from lmworks.core.telemetry import emit
    from lmworks.server import spans

    exporter = InMemorySpanExporter()
    monkeypatch.setattr(spans, "OTLPSpanExporter", lambda endpoint: exporter)
    engine.pause = 0.02
    server = start(otlp_endpoint="http://127.0.0.1:9/v1/traces")
    parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    body = {**ASK, "model": "talker", "temperature": 0.5, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, headers=parent) as response:
        lines = response.iter_lines()
        answer = json.loads(next(lines).removeprefix("data: "))
        emit("engine.request_finished", request_id=f"talker/{answer['id']}-0", num_generated_tokens=5,
             queue_seconds=0.25, time_to_first_token_seconds=0.5, e2e_seconds=2.0)  # fmt: skip
        assert "data: [DONE]" in lines
    httpx.get(f"{server.url}/live")
    server.stop()
    [span] = exporter.get_finished_spans()
    assert span.name == "POST /v1/chat/completions"
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    expected = {
        "gen_ai.request.model": "talker",
        "gen_ai.request.id": answer["id"],
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.completion_tokens": 5,
        "gen_ai.latency.time_in_queue": 0.25,
        "gen_ai.latency.time_to_first_token": 0.5,
        "gen_ai.latency.e2e": 2.0,
        "http.response.status_code": 200,
    }
    assert expected.items() <= span.attributes.items()
