"""The server as a process: ports, signals, draining, and a real engine behind it."""

import json
import signal
import socket
import subprocess
import sys
import threading

import httpx
import openai
import pytest
import torch
from click.testing import CliRunner
from scripted_engine import ScriptedEngine
from waiting import until

from lmworks.cli.trace import trace
from lmworks.core.errors import ConfigError, LMWorksError, ServerError
from lmworks.core.lineage import write_artifact
from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM
from lmworks.engine.prompts import encode_prompt
from lmworks.models.build import build_model
from lmworks.models.hub import save_pretrained
from lmworks.proofs.tiny import LLAMA
from lmworks.server.config import AppConfig
from lmworks.server.serve import ServeConfig, listen, run_in_background, serve, start_in_background, url_of
from lmworks.server.served_model import ServedModel

ASK = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, tokenizer, tokenizer_folder):
    """A tiny random model with a chat tokenizer, as an artifact."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = build_model(LLAMA.model_copy(update={"vocab_size": tokenizer.vocab_size}), seed=0)
    with write_artifact(folder, "model", config={}, parents={"tokenizer": tokenizer_folder}) as writer:
        save_pretrained(model, writer.folder, dtype=torch.float32)
        tokenizer.save(writer.folder)
    return folder


@pytest.fixture(scope="module")
def journal_file(tmp_path_factory):
    return tmp_path_factory.mktemp("journal") / "responses.jsonl"


@pytest.fixture(scope="module")
def real(model_folder, journal_file):
    config = ServeConfig(models={"tiny": model_folder}, port=0, journal=journal_file, engine={"num_kv_blocks": 32})
    with start_in_background(config) as server:
        yield server


@pytest.fixture
def client(real):
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="unused", max_retries=0, timeout=30) as client:
        yield client


def metric(url, name):
    line = next(x for x in httpx.get(f"{url}/metrics").text.splitlines() if x.startswith(name + "{"))
    return float(line.rpartition(" ")[2])


def test_the_server_says_what_the_engine_says(client, model_folder, tokenizer):
    params = SamplingParams(temperature=0, max_tokens=12)
    expected = LLM(model_folder).generate([encode_prompt(tokenizer, "Paris is")], params)[0].outputs[0]
    whole = client.completions.create(model="tiny", prompt="Paris is", temperature=0, max_tokens=12)
    assert whole.choices[0].text == expected.text
    assert whole.choices[0].finish_reason == expected.finish_reason
    stream = client.completions.create(model="tiny", prompt="Paris is", temperature=0, max_tokens=12, stream=True)
    assert "".join(c.choices[0].text for c in stream) == expected.text


def test_chat_with_logprobs_n_and_seed(client):
    def ask(stream):
        return client.chat.completions.create(
            model="tiny", messages=ASK, n=2, seed=5, max_tokens=8, logprobs=True, top_logprobs=3, stream=stream
        )

    answer = ask(stream=False)
    texts = ["", ""]
    for chunk in ask(stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [c.message.content for c in answer.choices]
    assert answer.usage.completion_tokens <= 16
    entry = answer.choices[0].logprobs.content[0]
    assert entry.logprob <= 0
    assert len(entry.top_logprobs) == 3
    assert entry.top_logprobs[0].logprob >= entry.top_logprobs[-1].logprob


def test_leaving_frees_every_block(real):
    running, usage = "vllm:num_requests_running", "vllm:kv_cache_usage_perc"
    body = {"model": "tiny", "prompt": "x", "max_tokens": 200, "ignore_eos": True, "n": 4}
    for stream in (True, False):
        with httpx.Client(timeout=20) as http:
            request = http.build_request("POST", f"{real.url}/v1/completions", json={**body, "stream": stream})
            if stream:
                response = http.send(request, stream=True)
                assert next(response.iter_lines()).startswith("data: ")
                response.close()
            else:
                request.extensions["timeout"] = {"read": 0.02}
                with pytest.raises(httpx.ReadTimeout):
                    http.send(request)
        until(lambda: metric(real.url, running) == 0 and metric(real.url, usage) == 0)
    assert metric(real.url, "vllm:e2e_request_latency_seconds_count") >= 1


def test_many_clients_at_once(real, client):
    texts = []

    def ask():
        texts.append(
            client.completions.create(model="tiny", prompt="Voilà", temperature=0, max_tokens=6).choices[0].text
        )

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 12
    assert len(set(texts)) == 1


def test_an_answer_is_traced_to_its_tokenizer(real, client, journal_file):
    answer = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=2)
    tree = httpx.get(f"{real.url}/v1/traces/{answer.id}").json()["made_from"]
    assert (tree["kind"], tree["state"]) == ("model", "intact")
    assert tree["parents"][0]["role"] == "tokenizer"
    printed = CliRunner().invoke(trace, [answer.id, "--journal", str(journal_file), "--json"])
    assert json.loads(printed.output)["made_from"]["content_hash"] == tree["content_hash"]


def test_a_port_in_use_is_said_before_a_model_is_read(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"127.0.0.1:{port} is in use"):
            serve(ServeConfig(models={"m": tmp_path / "there is no model here"}, port=port))
    with pytest.raises(ServerError, match=r"203\.0\.113\.1"):
        listen("203.0.113.1", 0)


def test_a_model_that_cannot_be_loaded_gives_the_port_back(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ServerError, match="does not exist"):
        start_in_background(ServeConfig(models={"m": tmp_path / "none"}, port=port))
    with pytest.raises(LMWorksError, match=r"config\.json"):
        start_in_background(ServeConfig(models={"m": tmp_path}, port=port))
    listen("127.0.0.1", port).close()


def test_names_and_counts_of_models_are_checked(tmp_path):
    for models in ({}, {"a/b": tmp_path}, {"": tmp_path}):
        with pytest.raises(ConfigError):
            ServeConfig.parse({"models": models})


def test_urls_a_browser_can_open():
    for host, shown in (("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "127.0.0.1")):
        with listen(host, 0) as listener:
            assert url_of(listener).startswith(f"http://{shown}:")


def test_stopping_lets_a_running_answer_finish(tokenizer):
    engine = ScriptedEngine(tokenizer)
    engine.pause = 0.03
    listener = listen("127.0.0.1", 0)
    server = run_in_background({"m": ServedModel("m", engine)}, AppConfig(), listener, drain_seconds=10)
    texts = []
    body = {"model": "m", "messages": ASK, "stream": True}
    asking = threading.Thread(
        target=lambda: texts.append(httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=20).text)
    )
    asking.start()
    until(lambda: engine.running)
    server.stop()
    asking.join()
    listener.close()
    assert texts[0].endswith("data: [DONE]\n\n")
    assert engine.aborted == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_an_answer_that_outlasts_the_drain_is_aborted(tokenizer):
    engine = ScriptedEngine(tokenizer)
    engine.pause = 30
    listener = listen("127.0.0.1", 0)
    server = run_in_background({"m": ServedModel("m", engine)}, AppConfig(), listener, drain_seconds=1)
    outcome = []

    def ask():
        try:
            httpx.post(f"{server.url}/v1/chat/completions", json={"model": "m", "messages": ASK}, timeout=20)
        except httpx.TransportError as error:
            outcome.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: engine.running)
    server.stop()
    asking.join()
    listener.close()
    assert len(engine.aborted) == 1
    assert not engine.running


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_the_process_with_status_zero(model_folder, number):
    code = (
        "import sys; from lmworks.server.serve import serve, ServeConfig;"
        "serve(ServeConfig(models={'tiny': sys.argv[1]}, port=0))"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(model_folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "serves on" in line:
                break
        url = line.split()[3]
        assert httpx.get(f"{url}/health", timeout=30).status_code == 200
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(20) == 0, rest
    assert "Traceback" not in rest
    assert rest.endswith("stopped\n")
