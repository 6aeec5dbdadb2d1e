"""Thousands of requests of all kinds, many cut off, while adapters come and go: all end, nothing is left or grows."""

import asyncio
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest
import torch
from tiny_engine import byte_tokenizer, tiny_model
from waiting import until

from lmworks.adapters import LoraConfig, inject_lora, save_adapter
from lmworks.engine import AsyncLLM, EngineConfig
from lmworks.models.hub import save_pretrained
from lmworks.server.config import AppConfig
from lmworks.server.serve import listen, run_in_background
from lmworks.server.served_model import ServedModel

ADMIN = {"Authorization": "Bearer chief"}
CLIENTS = 24
ANSWERS = {200, 400, 404, 429, 503}
"""400: a prompt or a parameter beyond the limits; 404: an adapter that is not loaded; 429, 503: no room."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr("lmworks.server.journal.REMEMBERED", 100)  # what is remembered on purpose is soon full
    model = tiny_model()
    save_pretrained(model, tmp_path / "model")
    byte_tokenizer().save(tmp_path / "model")
    for seed, name in enumerate(("poet", "cook")):
        config = LoraConfig(r=4, lora_alpha=8)
        adapted = inject_lora(tiny_model(), config, seed=seed)
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(seed))
        save_adapter(adapted, config, tmp_path / name, rename=lambda n: n.replace("decoder.", "model."))
    settings = EngineConfig(max_num_seqs=8, max_num_batched_tokens=48, num_kv_blocks=60, block_size=4, max_loras=2)
    llm = AsyncLLM(tmp_path / "model", config=settings)
    listener = listen("127.0.0.1", 0)
    models = {"tiny": ServedModel("tiny", llm, tmp_path / "model", "abcdef0123")}
    running = run_in_background(models, AppConfig(admin_api_key="chief"), listener)
    yield running.url, tmp_path
    running.stop()
    listener.close()
    llm.shutdown()


def resident_bytes():
    """Of this process, which serves, and of its children, one of which is the engine."""
    pids = [os.getpid(), *map(int, Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())]
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def question(dice):
    """A path and a body: prompts and parameters of all kinds, some of which must be refused."""
    sampling = {
        "max_tokens": dice.randrange(1, 24), "temperature": dice.choice([0, 0.7, 1.5]), "n": dice.choice([1, 1, 1, 3]),
        "top_p": dice.choice([1, 0.9]), "top_k": dice.choice([-1, 5]), "min_p": dice.choice([0, 0.1]),
        "repetition_penalty": dice.choice([1, 1.2]), "stop": dice.choice([None, ["e"], ["\n", "zz"]]),
        "seed": dice.choice([None, dice.randrange(9)]), "ignore_eos": dice.random() < 0.3,
        "priority": dice.randrange(3), "model": dice.choice(["tiny", "tiny", "tiny", "poet", "cook"]),
        "stream": dice.random() < 0.5,
    }  # fmt: skip
    kind = dice.random()
    if kind < 0.05:
        sampling |= dice.choice([{"n": 0}, {"max_tokens": 10_000}, {"temperature": -1}, {"logprobs": 99}])
    text = "".join(dice.choices("abcdef \n中文", k=dice.randrange(1, 60)))
    if kind < 0.15:
        sampling["structured_outputs"] = dice.choice([{"choice": ["yes", "no"]}, {"regex": "[a-c]{1,6}"}])
    if kind < 0.6:
        prompt = dice.choice([text, [dice.randrange(256) for _ in range(dice.randrange(1, 50))]])
        return "/v1/completions", {"prompt": prompt, "logprobs": dice.choice([None, 2]), **sampling}
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **sampling}


async def ask(http, dice, outcomes):
    """One request: read to its end, or left in the middle."""
    path, body = question(dice)
    leaves = dice.random() < 0.25
    try:
        async with asyncio.timeout(dice.uniform(0.001, 0.2) if leaves else 60):
            async with http.stream("POST", path, json=body) as response:
                text = (await response.aread()).decode()
    except TimeoutError:
        assert leaves, f"no end within a minute: {body}"
        outcomes["left"] += 1
        return
    assert response.status_code in ANSWERS, (response.status_code, text, body)
    if response.status_code == 200 and body["stream"]:
        assert text.rstrip().endswith("data: [DONE]"), text
    elif response.status_code == 200:
        assert len(json.loads(text)["choices"]) == body["n"]
    outcomes[response.status_code] += 1


async def tend_adapters(http, folder, dice, stop):
    """Load and unload adapters as long as others ask."""
    while not stop.is_set():
        name = dice.choice(["poet", "cook"])
        if dice.random() < 0.6:
            body = {"lora_name": name, "lora_path": str(folder / name)}
            response = await http.post("/v1/load_lora_adapter", json=body)
        else:
            response = await http.post("/v1/unload_lora_adapter", json={"lora_name": name})
        assert response.status_code in (200, 400, 404), response.text
        await asyncio.sleep(dice.uniform(0, 0.2))


async def soak(url, folder, seed, count):
    """Ask `count` times; how requests ended, and bytes and objects in memory after each fifth of them."""
    outcomes, sizes, left = Counter(), [], iter(range(count))
    limits = httpx.Limits(max_connections=CLIENTS + 2, max_keepalive_connections=CLIENTS // 2)
    async with httpx.AsyncClient(base_url=url, headers=ADMIN, timeout=60, limits=limits) as http:

        async def client(number):
            dice = random.Random(f"{seed}-{number}")
            for turn in left:
                await ask(http, dice, outcomes)
                if (turn + 1) % (count // 5) == 0:
                    sizes.append((resident_bytes(), sys.getallocatedblocks()))

        stop = asyncio.Event()
        tender = asyncio.create_task(tend_adapters(http, folder, random.Random(seed), stop))
        await asyncio.gather(*map(client, range(CLIENTS)))
        stop.set()
        await tender
    return outcomes, sizes


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_all_requests_end_and_nothing_is_left(server, count):
    url, folder = server
    outcomes, sizes = asyncio.run(soak(url, folder, 0, count))
    print(outcomes, [f"{size / 1e6:.0f} MB, {blocks:,} blocks" for size, blocks in sizes])
    assert sum(outcomes.values()) == count
    assert outcomes[200] > count / 4  # adapters come and go: how many are asked in vain is chance
    assert outcomes["left"] > count / 20

    def value(name):
        lines = httpx.get(f"{url}/metrics", headers=ADMIN).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    for gauge in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        until(lambda gauge=gauge: value(gauge) == 0)
    if count >= 10_000:  # what is in use stays; the heap of so many short lives has holes that fill slowly
        (first, blocks), (last, blocks_left) = sizes[1], sizes[-1]
        assert blocks_left < 1.02 * blocks, "objects are left of requests"
        assert last < 1.05 * first, "memory grows with requests"
