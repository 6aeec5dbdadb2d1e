"""What an administrator changes while a server runs: adapters, versions of the weights, sleep; and what clients see."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time

import httpx
import openai
import pytest
import torch
from tiny_engine import byte_tokenizer, greedy_loop, tiny_model

from lmworks.adapters import LoraConfig, inject_lora, save_adapter
from lmworks.core.errors import LMWorksError
from lmworks.core.sampling import SamplingParams
from lmworks.engine import AsyncLLM, EngineConfig
from lmworks.engine.process.child_process import Restarts
from lmworks.models.hub import save_pretrained
from lmworks.server.config import AppConfig
from lmworks.server.serve import listen, run_in_background
from lmworks.server.served_model import ServedModel

ADMIN = {"Authorization": "Bearer chief"}
GREEDY = {"temperature": 0, "max_tokens": 8, "extra_body": {"ignore_eos": True, "return_token_ids": True}}
PROMPT = [40, 90, 41, 7, 200, 13]
CONFIG = EngineConfig(dtype="float32", max_num_batched_tokens=32)


def adapted(seed):
    """The first model with an adapter merged into it, and a way to save the adapter."""
    config = LoraConfig(r=4, lora_alpha=8)
    model = inject_lora(tiny_model(), config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model, config


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Weights `0` and `1`, and adapters `poet` and `cook` of the former."""
    root = tmp_path_factory.mktemp("artifacts")
    for seed in (0, 1):
        save_pretrained(tiny_model(seed=seed), root / str(seed))
        byte_tokenizer().save(root / str(seed))
    for seed, name in enumerate(("poet", "cook")):
        save_adapter(*adapted(seed), root / name, rename=lambda n: n.replace("decoder.", "model."))
    return root


@pytest.fixture(scope="module")
def expected():
    said = {name: greedy_loop(adapted(seed)[0], PROMPT, 8) for seed, name in enumerate(("poet", "cook"))}
    return said | {version: greedy_loop(tiny_model(seed=version), PROMPT, 8) for version in (0, 1)}


@pytest.fixture
def server(folders):
    llm = AsyncLLM(folders / "0", config=CONFIG)
    listener = listen("127.0.0.1", 0)
    models = {"tiny": ServedModel("tiny", llm, folders / "0", "abcdef0123", aliases=("small",))}
    running = run_in_background(models, AppConfig(admin_api_key="chief"), listener)
    with httpx.Client(base_url=running.url, headers=ADMIN, timeout=20) as client:
        yield client
    running.stop()
    listener.close()
    llm.shutdown()
    llm._home.loop.engine.check_integrity()


def ask(server, model="tiny", **changes):
    body = {"model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": 8, "ignore_eos": True,
            "return_token_ids": True, **changes}  # fmt: skip
    return server.post("/v1/completions", json=body)


def said(server, model="tiny"):
    return ask(server, model).raise_for_status().json()["choices"][0]["token_ids"]


def load(server, name, path, **more):
    return server.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path), **more})


def test_adapters_come_and_go(server, folders, expected):
    assert load(server, "poet", folders / "poet").status_code == 200
    assert load(server, "cook", folders / "cook").status_code == 200
    cards = {card["id"]: card for card in server.get("/v1/models").json()["data"]}
    assert {name: card["parent"] for name, card in cards.items()} == {
        "tiny": None, "small": None, "poet": "tiny", "cook": "tiny",
    }  # fmt: skip
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="chief", max_retries=0) as client:
        for model in ("poet", "tiny", "cook", "poet"):
            answer = client.completions.create(model=model, prompt=PROMPT, **GREEDY)
            assert answer.choices[0].token_ids == expected.get(model, expected[0])
            assert answer.model == model
    again = load(server, "poet", folders / "cook")
    assert (again.status_code, "is loaded" in again.json()["error"]["message"]) == (400, True)
    assert load(server, "poet", folders / "cook", load_inplace=True).status_code == 200
    assert said(server, "poet") == expected["cook"]
    assert server.post("/v1/unload_lora_adapter", json={"lora_name": "poet"}).status_code == 200
    assert ask(server, "poet").status_code == 404
    assert server.post("/v1/unload_lora_adapter", json={"lora_name": "poet"}).status_code == 404


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_an_adapter_takes_no_name_of_a_model(server, folders, name):
    refused = load(server, name, folders / "poet")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "lora_name"


def test_metrics_name_the_adapters(server, folders):
    load(server, "poet", folders / "poet")
    answers = [threading.Thread(target=ask, args=(server, "poet"), kwargs={"max_tokens": 100}) for _ in range(2)]
    for thread in answers:
        thread.start()
    found = None
    while found is None and any(thread.is_alive() for thread in answers):
        found = re.search(r'lora_requests_info\{.*max_lora="16".*running_lora_adapters="poet".*\} (\S+)',
                          server.get("/metrics").text)  # fmt: skip
    for thread in answers:
        thread.join()
    assert found is not None
    assert abs(float(found[1]) - time.time()) < 30


def test_versions_are_told(server, folders, expected):
    fingerprint = ask(server).json()["system_fingerprint"]
    assert server.post("/weights/activate", json={}).status_code == 400
    loaded = server.post("/weights/load", json={"path": str(folders / "1"), "version": "may"})
    assert loaded.json()["result"] == "may"
    assert said(server) == expected[0]
    assert server.post("/weights/activate", json={"version": "may"}).json()["result"] == "may"
    assert said(server) == expected[1]
    assert ask(server).json()["system_fingerprint"] == f"{fingerprint}-may"
    assert server.get("/v1/models/tiny").json()["weight_version"] == "may"
    assert server.post("/weights/rollback", json={}).json()["result"] == "0"
    assert said(server) == expected[0]
    assert ask(server).json()["system_fingerprint"] == fingerprint
    missing = server.post("/weights/load", json={"path": str(folders / "none")})
    assert missing.status_code >= 400
    assert "none" in missing.json()["error"]["message"]
    assert server.post("/update_weights", json={"path": str(folders / "1")}).status_code == 200
    assert said(server) == expected[1]
    assert ask(server).json()["system_fingerprint"] == f"{fingerprint}-2", "a number is given once, to failures too"


def test_no_request_is_lost_when_weights_change(server, folders):
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda n=n: answers.append(ask(server, max_tokens=40 + n))) for n in range(8)]
    for thread in threads:
        thread.start()
    server.post("/weights/load", json={"path": str(folders / "1")}).raise_for_status()
    for route in ("activate", "rollback", "rollback"):
        server.post(f"/weights/{route}", json={}).raise_for_status()
    for thread in threads:
        thread.join()
    assert [a.status_code for a in answers] == [200] * 8
    assert sorted(len(a.json()["choices"][0]["token_ids"]) for a in answers) == list(range(40, 48))


@pytest.mark.parametrize("level", [1, 2])
def test_sleepers_answer_503_and_wake_up(server, expected, level):
    assert said(server) == expected[0]
    assert server.post(f"/sleep?level={level}").status_code == 200
    assert server.get("/is_sleeping").json()["result"] == {"is_sleeping": True, "level": level}
    refused = ask(server)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    state = ("weights_offloaded", "discard_all")[level - 1]
    assert re.search(rf'engine_sleep_state\{{.*sleep_state="{state}"\}} 1.0', server.get("/metrics").text)
    assert server.post("/wake_up").status_code == 200
    assert server.get("/is_sleeping").json()["result"] == {"is_sleeping": False, "level": 0}
    assert said(server) == expected[0]


def test_only_the_chief_may(server, folders):
    for method, path in (("POST", "/sleep"), ("POST", "/weights/rollback"), ("GET", "/is_sleeping")):
        assert httpx.request(method, f"{server.base_url}{path}", json={}).status_code == 401
    assert server.post("/sleep?level=9").status_code == 400


def test_a_killed_engine_gets_back_what_it_had(folders, expected, tmp_path):
    lost = tmp_path / "lost"
    os.symlink(folders / "poet", lost)  # noqa: PTH211 - as any other path
    llm = AsyncLLM.spawn(folders / "0", CONFIG, restarts=Restarts(backoff_seconds=0.05, poll_seconds=0.1))
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)

    async def answer(adapter=None):
        return [t async for d in llm.generate(PROMPT, params, adapter=adapter) for t in d.token_ids]

    async def main():
        await llm.call("load_adapter", name="cook", path=str(folders / "cook"))
        await llm.call("load_adapter", name="lost", path=str(lost))
        cook = await answer("cook")
        await llm.call("load_weights", path=str(folders / "1"), version="may")
        await llm.call("activate_weights")
        lost.unlink()
        assert llm.pid is not None
        os.kill(llm.pid, signal.SIGKILL)
        while llm.state == "ready":
            await asyncio.sleep(0.01)
        await asyncio.to_thread(llm.wait_until_ready, 60)
        assert await answer() == expected[1]
        assert llm.stats().weight_version == "may"
        with pytest.raises(LMWorksError, match="'lost'"):
            await answer("lost")
        await llm.call("update_weights", path=str(folders / "0"))
        assert await answer("cook") == cook == expected["cook"]

    try:
        llm.wait_until_ready(60)
        asyncio.run(main())
    finally:
        llm.shutdown()
