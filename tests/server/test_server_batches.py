"""Files and batches by the official client: uploaded, run, polled, resumed, each client's own."""

import contextlib
import json
import time

import httpx
import openai
import pytest

from lmworks.core.errors import DataError
from lmworks.protocol.files import ENDPOINTS
from lmworks.server import endpoints, run_batch
from lmworks.server.config import ServeConfig
from lmworks.server.served_model import ServedModel

BODY = {"model": "talker", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


def line(custom_id, body=BODY, url="/v1/chat/completions", method="POST"):
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body})


def upload(client, *lines):
    return client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")


def ended(client, batch):
    deadline = time.monotonic() + 10
    while (batch := client.batches.retrieve(batch.id)).status not in ("completed", "failed", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)
    return batch


def results(client, file_id):
    return {r["custom_id"]: r["response"] for r in map(json.loads, client.files.content(file_id).text.splitlines())}


def test_the_table_of_endpoints_is_that_of_the_protocol():
    assert set(endpoints.ANSWERS) == set(ENDPOINTS)


def test_files(client):
    stored = upload(client, "one", "two")
    assert (stored.bytes, stored.filename, stored.purpose) == (7, "in.jsonl", "batch")
    assert client.files.retrieve(stored.id) == stored
    assert client.files.content(stored.id).text == "one\ntwo"
    assert [f.id for f in client.files.list()] == [stored.id]
    other = client.with_options(api_key="other")
    with pytest.raises(openai.NotFoundError):
        other.files.content(stored.id)
    assert other.files.list().data == []
    assert client.files.delete(stored.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(stored.id)


def test_a_batch_runs_every_line_and_a_bad_one_ends_alone(client, engine):
    lines = [line(f"r{i}", {**BODY, "seed": i}) for i in range(40)]
    lines += [line("bad", {**BODY, "temperature": 9}), line("gone", {**BODY, "model": "nobody"})]
    stored = upload(client, *lines)
    batch = client.batches.create(
        input_file_id=stored.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )
    assert batch.status == "validating"
    batch = ended(client, batch)
    assert (batch.status, batch.metadata) == ("completed", {"a": "b"})
    assert batch.request_counts.model_dump() == {"total": 42, "completed": 40, "failed": 2}
    done = results(client, batch.output_file_id)
    assert set(done) == {f"r{i}" for i in range(40)}
    assert done["r7"]["body"]["usage"]["completion_tokens"] == 4
    failed = results(client, batch.error_file_id)
    assert {name: r["status_code"] for name, r in failed.items()} == {"bad": 400, "gone": 404}
    assert failed["bad"]["body"]["error"]["param"] == "temperature"
    assert {o["priority"] for o in engine.options} == {1000}, "whoever waits goes first"
    assert [b.id for b in client.batches.list()] == [batch.id]
    with pytest.raises(openai.NotFoundError):
        client.with_options(api_key="other").batches.retrieve(batch.id)


@pytest.mark.parametrize(
    ("lines", "code", "param"),
    [
        ([], "empty_file", None),
        (["{"], "invalid_request", None),
        ([line("a"), line("a")], "duplicate_custom_id", "custom_id"),
        ([line("a", url="/v1/completions")], "mismatched_url", "url"),
        ([line("a", method="GET")], "invalid_value", "method"),
        ([line("a", {**BODY, "stream": True})], "invalid_request", "body.stream"),
        (['{"custom_id": "a"}'], "missing_required_parameter", "method"),
    ],
)
def test_input_that_cannot_be_run(client, engine, lines, code, param):
    batch = client.batches.create(
        input_file_id=upload(client, *lines).id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = ended(client, batch)
    assert batch.status == "failed"
    assert (batch.errors.data[0].code, batch.errors.data[0].param) == (code, param)
    assert engine.asked == []


def test_cancelling_keeps_what_is_done(client, engine):
    engine.pause = 0.02
    lines = [line(f"r{i}") for i in range(200)]
    batch = client.batches.create(
        input_file_id=upload(client, *lines).id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while client.batches.retrieve(batch.id).request_counts.completed < 16:
        time.sleep(0.02)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch)
    assert batch.status == "cancelled"
    assert 16 <= len(results(client, batch.output_file_id)) < 200
    deadline = time.monotonic() + 5
    while engine.running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_restarted_server_does_the_rest(start, engine, tmp_path):
    engine.pause = 0.02
    first = start(files_folder=tmp_path / "files")
    with openai.OpenAI(base_url=f"{first.url}/v1", api_key="k", max_retries=0) as client:
        lines = [line(f"r{i}") for i in range(64)]
        batch = client.batches.create(
            input_file_id=upload(client, *lines).id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        while not 16 <= client.batches.retrieve(batch.id).request_counts.completed < 64:
            time.sleep(0.01)
    first.stop()
    asked = len(engine.asked)
    engine.pause = 0.0
    second = start(files_folder=tmp_path / "files")
    with openai.OpenAI(base_url=f"{second.url}/v1", api_key="k", max_retries=0) as client:
        batch = ended(client, batch)
        assert batch.status == "completed"
        assert batch.request_counts.completed == 64
        assert set(results(client, batch.output_file_id)) == {f"r{i}" for i in range(64)}
    assert len(engine.asked) - asked <= 48, "finished lines are not asked again"


def test_a_full_engine_is_waited_for(client, engine, monkeypatch):
    from lmworks.core.errors import EngineOverloadedError
    from lmworks.server import batch_lines

    monkeypatch.setattr(batch_lines, "PAUSE_SECONDS", 0.01)
    engine.error = EngineOverloadedError("the queue is full")
    batch = client.batches.create(
        input_file_id=upload(client, line("a")).id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while len(engine.asked) < 3:
        time.sleep(0.01)
    engine.error = None
    assert ended(client, batch).request_counts.completed == 1


def test_bad_uploads_and_batches(url):
    with httpx.Client(base_url=f"{url}/v1") as http:
        for request, status in (
            ({"json": {}}, 415),
            ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400),
            ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=a"}}, 400),
            ({"files": {"other": b"x"}}, 400),
            ({"files": {"file": b"x"}, "data": {"purpose": "fine-tune"}}, 400),
            ({"files": {"file": b"x"}, "data": {"purpose": "batch"}, "headers": {"Origin": "https://evil.org"}}, 403),
        ):
            response = http.post("/files", **request)
            assert response.status_code == status, response.text
            assert response.json()["error"]["message"]
        assert http.get("/files/..%2Fx/content").status_code == 404
        body = {"input_file_id": "file-none", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        assert http.post("/batches", json=body).status_code == 404
        assert http.post("/batches", json={**body, "endpoint": "/v1/models"}).json()["error"]["param"] == "endpoint"
        assert http.get("/batches", params={"limit": "many"}).status_code == 400
        assert http.post("/batches/batch_none/cancel").status_code == 404


def test_a_file_over_the_limit(url, monkeypatch):
    from lmworks.server import files

    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1000)
    response = httpx.post(f"{url}/v1/files", files={"file": b"x" * 2000}, data={"purpose": "batch"})
    assert response.status_code == 413


def test_a_file_is_answered_without_a_server_in_its_order(engine, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def spawned(_):
        yield {"talker": ServedModel("talker", engine)}

    monkeypatch.setattr(run_batch, "spawned", spawned)
    monkeypatch.setattr(run_batch, "wait_until_ready", lambda _: None)
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [line(f"r{i}") for i in range(30)] + [line("bad", {**BODY, "top_p": 7})]
    lines.append(line("text", {"model": "talker", "prompt": "hi"}, "/v1/completions"))
    source.write_text("\n".join(lines))
    assert run_batch.run_batch(ServeConfig(models={"talker": tmp_path}), source, target) == 1
    told = [json.loads(row) for row in target.read_text().splitlines()]
    assert [row["custom_id"] for row in told] == [*(f"r{i}" for i in range(30)), "bad", "text"]
    assert told[-2]["response"]["status_code"] == 400
    assert told[-1]["response"]["body"]["object"] == "text_completion"
    source.write_text(line("a") + "\n{")
    with pytest.raises(DataError, match="line 2"):
        run_batch.run_batch(ServeConfig(models={"talker": tmp_path}), source, target)
