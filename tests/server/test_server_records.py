"""What a server tells about itself: metrics, journal, traces, headers."""

import json

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lmworks.core.errors import ServerError
from lmworks.core.lineage import write_artifact
from lmworks.core.telemetry import emit
from lmworks.server.journal import Journal, find_response

BODY = {"model": "talker", "messages": [{"role": "user", "content": "hi"}]}


def samples(url):
    text = httpx.get(f"{url}/metrics").text
    return {
        (s.name, s.labels.get("model_name"), s.labels.get("finished_reason")): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if not s.name.endswith("_bucket")
    }


def test_metrics_have_vllm_s_names(url, engine):
    answer = httpx.post(f"{url}/v1/chat/completions", json=BODY).json()
    emit("engine.request_finished", request_id="talker/x-0", queue_seconds=0.5,
         prefill_seconds=0.25, decode_seconds=2.0)  # fmt: skip
    emit("engine.request_finished", request_id="another-server/x-0", queue_seconds=0.5)
    found = samples(url)
    tokens = answer["usage"]["completion_tokens"]
    assert found["vllm:generation_tokens_total", "talker", None] == tokens
    assert found["vllm:time_to_first_token_seconds_count", "talker", None] == 1
    assert found["vllm:inter_token_latency_seconds_count", "talker", None] == tokens - 1
    assert found["vllm:e2e_request_latency_seconds_count", "talker", None] == 1
    assert found["vllm:request_prompt_tokens_sum", "talker", None] == answer["usage"]["prompt_tokens"]
    assert found["vllm:request_queue_time_seconds_sum", "talker", None] == 0.5
    assert found["vllm:request_prefill_time_seconds_sum", "talker", None] == 0.25
    assert found["vllm:request_decode_time_seconds_sum", "talker", None] == 2.0
    assert found["vllm:request_success_total", "talker", "stop"] == 3
    assert found["vllm:kv_cache_usage_perc", "base", None] == 0.25
    assert found["vllm:num_requests_running", "talker", None] == 0


def test_two_servers_count_apart(start):
    first, second = start().url, start().url
    httpx.post(f"{first}/v1/chat/completions", json=BODY)
    name = ("vllm:e2e_request_latency_seconds_count", "talker", None)
    assert (samples(first)[name], samples(second).get(name)) == (1, None)


def test_every_response_is_journaled_without_its_text(url, journal):
    whole = httpx.post(f"{url}/v1/chat/completions", json=BODY).json()
    streamed = httpx.post(f"{url}/v1/completions", json={"model": "base", "prompt": "hi", "stream": True}).text
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line["id"] for line in lines] == [whole["id"], json.loads(streamed.split("\n")[0][6:])["id"]]
    assert lines[0]["model"] == "talker"
    assert lines[0]["content_hash"] == "abcdef0123456789"
    assert lines[0]["path"].endswith("/talker")
    assert lines[0]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert "Paris" not in journal.read_text()


def test_a_trace_leads_to_the_model_s_lineage(start, engine, tmp_path):
    url = start().url
    response_id = httpx.post(f"{url}/v1/chat/completions", json=BODY).json()["id"]
    trace = httpx.get(f"{url}/v1/traces/{response_id}").json()
    assert trace["answer"]["model"] == "talker"
    assert trace["made_from"]["state"] == "gone"
    with write_artifact(tmp_path / "talker", "model", config={"steps": 3}):
        pass
    trace = httpx.get(f"{url}/v1/traces/{response_id}").json()
    assert trace["made_from"]["state"] == "changed"
    missing = httpx.get(f"{url}/v1/traces/chatcmpl-none")
    assert missing.status_code == 404
    assert "chatcmpl-none" in missing.json()["error"]["message"]


def test_a_journal_survives_restarts_and_torn_lines(start, journal):
    first = httpx.post(f"{start(journal=journal).url}/v1/chat/completions", json=BODY).json()["id"]
    with journal.open("a") as handle:
        handle.write('{"id": "chatcmpl-torn", "crea')
    url = start(journal=journal).url
    second = httpx.post(f"{url}/v1/chat/completions", json=BODY).json()["id"]
    assert httpx.get(f"{url}/v1/traces/{first}").json()["answer"]["id"] == first
    assert find_response(journal, second).id == second
    assert find_response(journal, "chatcmpl-torn") is None


def test_a_journal_that_cannot_be_written_is_said_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match="journal"):
        Journal(tmp_path / "file" / "responses.jsonl")


def test_a_full_disk_costs_the_record_and_not_the_answer(start, caplog):
    url = start(journal="/dev/full").url
    response = httpx.post(f"{url}/v1/chat/completions", json=BODY)
    assert response.status_code == 200
    assert httpx.get(f"{url}/v1/traces/{response.json()['id']}").status_code == 200
    assert "was not recorded" in caplog.text


def test_a_dead_engine_is_unhealthy_but_the_process_lives(url, engine):
    engine.alive = False
    assert [httpx.get(url + path).status_code for path in ("/health", "/ready", "/live")] == [503, 503, 200]
    assert "talker" in httpx.get(f"{url}/ready").json()["error"]["message"]


def test_health_headers_and_origins(start):
    url = start(cors_origins=("https://example.org",)).url
    for path in ("/health", "/live", "/ready"):
        assert httpx.get(url + path).json() == {"status": "ok"}
    response = httpx.get(f"{url}/v1/models", headers={"Origin": "https://example.org"})
    assert response.headers["access-control-allow-origin"] == "https://example.org"
    assert response.headers["x-content-type-options"] == "nosniff"
    other = httpx.get(f"{url}/v1/models", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
