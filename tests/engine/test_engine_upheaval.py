"""Hundreds of requests while adapters come and go, weights change, the engine sleeps and clients leave: all end."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from tiny_engine import byte_tokenizer, random_prompts, tiny_model

from lmworks.adapters import LoraConfig, inject_lora, save_adapter
from lmworks.core.errors import EngineUnavailableError, ModelNotFoundError, RequestError
from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM, EngineConfig
from lmworks.engine.request import Request
from lmworks.engine.weights import sleep, versions

ADAPTERS = ("a", "b", "c", "d")
NUM_REQUESTS = 300


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("artifacts")
    for seed in (0, 1):
        save(tiny_model(seed=seed), root / str(seed))
    for seed, name in enumerate(ADAPTERS):
        config = LoraConfig(r=2 + seed, lora_alpha=8)
        model = inject_lora(tiny_model(), config, seed=seed)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(seed))
        save_adapter(model, config, root / name, rename=lambda n: n.replace("decoder.", "model."))
    return root


def save(model, folder):
    from lmworks.models.hub import save_pretrained

    save_pretrained(model, folder)
    byte_tokenizer().save(folder)


class Upheaval:
    """One engine, and whoever disturbs it."""

    def __init__(self, folders, seed, **settings):
        self.folders, self.dice = folders, random.Random(seed)
        config = EngineConfig(
            dtype="float32", max_num_seqs=8, max_num_batched_tokens=24, num_kv_blocks=40, block_size=4,
            max_model_len=100, max_loras=4, **settings,
        )  # fmt: skip
        self.engine = LLM(folders / "0", config=config).engine
        self.asked: dict[str, int] = {}
        """Completions that are to come of each request."""
        self.ended: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        """What was done, by name."""
        self.loading = None

    def step(self):
        self.note(self.engine.step())

    def note(self, deltas):
        for delta in deltas:
            if delta.finish_reason is not None:
                assert delta.error is None
                self.asked[delta.request_id] -= 1
                self.ended[delta.finish_reason] += 1

    def ask(self):
        dice, name = self.dice, f"r{len(self.asked)}"
        params = SamplingParams(
            temperature=dice.choice([0, 1]), max_tokens=dice.randrange(1, 30), ignore_eos=True, seed=1,
            n=dice.choice([1, 1, 1, 3]), prompt_logprobs=dice.choice([None, None, None, 1]),
        )  # fmt: skip
        prompt = random_prompts([dice.randrange(1, 50)], seed=dice.randrange(6))[0]
        adapter = dice.choice([None, *ADAPTERS])
        try:
            self.engine.add_request(Request(name, tuple(prompt), params, adapter=adapter))
        except ModelNotFoundError:
            assert adapter not in self.engine.stats().adapters
        except EngineUnavailableError:
            assert self.engine.sleep_level
        else:
            self.asked[name] = params.n

    def leave(self):
        running = [name for name, left in self.asked.items() if left]
        if running:
            self.note(self.engine.abort(self.dice.choice(running)))

    def load_adapter(self):
        name = self.dice.choice(ADAPTERS)
        self.engine.adapters.load(self.engine.model, name, str(self.folders / self.dice.choice(ADAPTERS)))

    def unload_adapter(self):
        self.engine.adapters.unload(self.dice.choice(ADAPTERS))

    def load_weights(self):
        self.loading = versions.load(self.engine, str(self.folders / self.dice.choice("01")))

    def activate(self):
        versions.activate(self.engine)

    def rollback(self):
        versions.rollback(self.engine)

    def update(self):
        self.engine.update_weights(tiny_model(seed=1).state_dict(), self.folders / "1")

    def nap(self):
        sleep.sleep(self.engine, self.dice.choice([1, 2]))
        self.ask()
        self.leave()
        self.engine.check_integrity()
        sleep.wake_up(self.engine)

    def disturb(self):
        deed = self.dice.choice(
            [self.load_adapter, self.load_adapter, self.unload_adapter, self.load_weights, self.activate,
             self.rollback, self.update, self.nap]
        )  # fmt: skip
        try:
            deed()
        except RequestError:
            return  # what is not there cannot be unloaded or served
        self.done[deed.__name__] += 1


@pytest.mark.parametrize("settings", [{}, {"attention": "reference"}], ids=["program", "modules"])
def test_every_request_ends_and_every_block_comes_back(folders, settings):
    world = Upheaval(folders, seed=7, **settings)
    count = NUM_REQUESTS if not settings else NUM_REQUESTS // 6
    while len(world.asked) < count:
        for _ in range(world.dice.randrange(4)):
            world.ask()
        for _ in range(world.dice.randrange(4)):
            world.step()
        if world.dice.random() < 0.15:
            world.leave()
        if world.dice.random() < 0.3:
            world.disturb()
        world.engine.check_integrity()
        if len(world.engine.scheduler.waiting) > 60:
            while world.engine.has_unfinished:
                world.step()
    while world.engine.has_unfinished:
        world.step()
    engine = world.engine
    engine.check_integrity()
    assert not any(world.asked.values()), "a completion never ended"
    assert engine.blocks.num_free_blocks == engine.blocks.num_blocks
    assert world.ended["length"] > world.ended["abort"] > 0
    if not settings:
        assert set(world.done) == {
            "load_adapter", "unload_adapter", "load_weights", "activate", "rollback", "update", "nap",
        }  # fmt: skip
    if world.loading is not None:
        world.loading.result(30)
