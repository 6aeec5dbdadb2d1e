"""Weights exchanged, put aside, kept on disk: no request is lost, no stale key is read, memory is given back."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest
import torch
from tiny_engine import VOCABULARY, byte_tokenizer, greedy_loop, random_prompts, tiny_model

from lmworks.core.errors import CheckpointError, EngineUnavailableError, RequestError
from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM, EngineConfig
from lmworks.engine.request import Request
from lmworks.engine.weights import sleep, versions
from lmworks.kernels.native.library import cache_folder, library
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.hub import save_pretrained
from lmworks.models.slots import AttentionConfig, MLPConfig

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
PROMPTS = random_prompts([40, 7])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two sets of weights of one model, `0` and `1`, and a model of another shape."""
    root = tmp_path_factory.mktemp("models")
    for name, model in {"0": tiny_model(seed=0), "1": tiny_model(seed=1), "other": tiny_model(hidden_size=24)}.items():
        save_pretrained(model, root / name)
        byte_tokenizer().save(root / name)
    return root


@pytest.fixture(scope="module")
def expected():
    return [[greedy_loop(tiny_model(seed=seed), p, 10) for p in PROMPTS] for seed in (0, 1)]


def opened(folders, **settings):
    return LLM(folders / "0", config=EngineConfig(**{"dtype": "float32", **settings}))


def answers(llm):
    found = [list(o.outputs[0].token_ids) for o in llm.generate(PROMPTS, GREEDY)]
    llm.engine.check_integrity()
    return found


def drain(engine):
    deltas = []
    while engine.has_unfinished:
        deltas += engine.step()
    engine.check_integrity()
    return deltas


def test_versions_are_swapped_and_prefixes_keep_theirs(folders, expected):
    llm = opened(folders)
    engine = llm.engine
    assert answers(llm) == expected[0]
    assert engine.stats().weight_version == "0"
    assert versions.load(engine, str(folders / "1"), "new").result() == "new"
    assert answers(llm) == expected[0], "loaded is not served"
    assert versions.activate(engine, "new") == "new"
    hits = engine.blocks.prefix_hits
    assert answers(llm) == expected[1]
    assert engine.blocks.prefix_hits == hits, "keys of other weights are not found"
    assert versions.rollback(engine) == "0"
    assert answers(llm) == expected[0]
    assert engine.blocks.prefix_hits > hits, "those of the same weights are found again"
    assert versions.rollback(engine) == "new"
    assert engine.stats().weight_path == str(folders / "1")


def test_running_requests_go_on_with_the_new_weights(folders):
    llm = opened(folders)
    engine, prompt = llm.engine, PROMPTS[0]
    engine.add_request(Request("a", tuple(prompt), GREEDY))
    said = [t for _ in range(4) for d in engine.step() for t in d.token_ids]
    versions.load(engine, str(folders / "1")).result()
    versions.activate(engine)
    rest = [t for d in drain(engine) for t in d.token_ids]
    assert said == greedy_loop(tiny_model(seed=0), prompt, len(said))
    assert rest == greedy_loop(tiny_model(seed=1), prompt + said, 10 - len(said))


def test_steps_go_on_while_weights_are_loaded(folders, expected, monkeypatch):
    llm, may = opened(folders), threading.Event()
    load = versions.load_weights
    monkeypatch.setattr(versions, "load_weights", lambda *given: may.wait(20) and load(*given))
    loading = versions.load(llm.engine, str(folders / "1"))
    assert answers(llm) == expected[0]
    with pytest.raises(RequestError, match="being loaded"):
        versions.load(llm.engine, str(folders / "1"))
    with pytest.raises(RequestError, match="being loaded"):
        sleep.sleep(llm.engine, 1)
    may.set()
    assert loading.result(20) == "1"


def test_what_cannot_serve_is_refused(folders, expected, monkeypatch):
    llm = opened(folders)
    engine = llm.engine
    with pytest.raises(RequestError, match="no others are loaded"):
        versions.activate(engine)
    with pytest.raises(RequestError, match="called '0'"):
        versions.load(engine, str(folders / "1"), "0")
    for path, told in ((folders / "other", "hidden_size"), (folders / "none", "none")):
        with pytest.raises(CheckpointError, match=told):
            versions.load(engine, str(path)).result()
    with pytest.raises(RequestError, match="no others"):
        versions.rollback(engine)
    monkeypatch.setattr(versions, "available_memory", lambda _: 1000)
    with pytest.raises(CheckpointError, match=r"needs 0\.00 GiB .* and 0\.00 GiB are free"):
        versions.load(engine, str(folders / "1")).result()
    monkeypatch.undo()
    versions.load(engine, str(folders / "1"), "b").result()
    with pytest.raises(RequestError, match=r"'c'.*only 'b'"):
        versions.activate(engine, "c")
    with pytest.raises(RequestError, match="never served"):
        versions.rollback(engine)
    assert answers(llm) == expected[0]


@pytest.mark.parametrize("level", [1, 2])
def test_sleepers_lose_no_request(folders, level, expected):
    llm = opened(folders)
    engine = llm.engine
    engine.add_request(Request("a", tuple(PROMPTS[0]), GREEDY))
    engine.add_request(Request("aborted", tuple(PROMPTS[1]), GREEDY))
    deltas = [d for _ in range(3) for d in engine.step()]
    sleep.sleep(engine, level)
    assert sleep.is_sleeping(engine) == {"is_sleeping": True, "level": level}
    assert not engine.has_unfinished
    assert sum(layer.nbytes for layer in engine.cache.layers) == 0
    with pytest.raises(EngineUnavailableError, match="sleeps"):
        engine.add_request(Request("b", tuple(PROMPTS[1]), GREEDY))
    with pytest.raises(EngineUnavailableError, match="sleeps"):
        llm.update_weights({})
    engine.abort("aborted")
    sleep.wake_up(engine)
    sleep.wake_up(engine)
    deltas += drain(engine)
    assert [t for d in deltas for t in d.token_ids if d.request_id == "a"] == expected[0][0]
    assert answers(llm) == expected[0]
    assert engine.stats().sleep_level == 0


def test_sleep_reads_the_weights_that_serve(folders, expected):
    llm = opened(folders)
    versions.load(llm.engine, str(folders / "1")).result()
    versions.activate(llm.engine)
    sleep.sleep(llm.engine, 1)
    sleep.sleep(llm.engine, 2)
    sleep.wake_up(llm.engine)
    assert answers(llm) == expected[1]
    llm.update_weights(tiny_model(seed=0).state_dict())
    with pytest.raises(RequestError, match="from memory"):
        sleep.sleep(llm.engine, 2)
    with pytest.raises(RequestError, match="level 3"):
        sleep.sleep(llm.engine, 3)
    assert answers(llm) == expected[0]


def test_weights_that_are_gone_leave_it_asleep(tmp_path, folders, expected):
    (tmp_path / "model").symlink_to(folders / "0")
    llm = LLM(tmp_path / "model", config=EngineConfig(dtype="float32"))
    sleep.sleep(llm.engine, 2)
    (tmp_path / "model").unlink()
    with pytest.raises(CheckpointError):
        sleep.wake_up(llm.engine)
    assert llm.engine.sleep_level == 2
    (tmp_path / "model").symlink_to(folders / "0")
    sleep.wake_up(llm.engine)
    assert answers(llm) == expected[0]


def test_a_draft_model_sleeps_too(folders, expected):
    guess = {"method": "draft_model", "model": str(folders / "0"), "num_speculative_tokens": 3}
    llm = LLM(folders / "0", config=EngineConfig.parse({"dtype": "float32", "speculative_config": guess}))
    assert answers(llm) == expected[0]
    sleep.sleep(llm.engine, 1)
    sleep.wake_up(llm.engine)
    assert answers(llm) == expected[0]
    llm.engine.speculation.proposer.check_integrity()


def resident():
    gc.collect()
    with open("/proc/self/status") as lines:
        return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_sleep_gives_memory_back(tmp_path):
    stack = StackConfig(
        num_hidden_layers=4,
        attention=AttentionConfig(num_attention_heads=8, num_key_value_heads=8, head_dim=64),
        mlp=MLPConfig(intermediate_size=2048),
    )
    model = build_model(
        ModelConfig(vocab_size=VOCABULARY, hidden_size=512, max_position_embeddings=256, decoder=stack), seed=0
    )
    save_pretrained(model, tmp_path)
    byte_tokenizer().save(tmp_path)
    weights = sum(p.nbytes for p in model.parameters())
    del model
    llm = LLM(tmp_path, config=EngineConfig(dtype="float32", kv_cache_memory_bytes=128 * 2**20))
    before = llm.generate([PROMPTS[0]], GREEDY)[0].outputs[0].token_ids
    torch._foreach_add_(list(llm.engine.cache.layers), 1.0)  # memory that is never written takes none
    cache = sum(layer.nbytes for layer in llm.engine.cache.layers)
    assert cache > 60 * 2**20
    assert weights > 60 * 2**20
    awake = resident()
    sleep.sleep(llm.engine, 1)
    light = resident()
    assert awake - light > 0.9 * cache
    sleep.sleep(llm.engine, 2)
    assert light - resident() > 0.8 * weights
    sleep.wake_up(llm.engine)
    assert llm.generate([PROMPTS[0]], GREEDY)[0].outputs[0].token_ids == before


needs_compiler = pytest.mark.skipif(library() is None, reason="the machine has no compiler")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where packed weights are kept for this test; what is compiled stays where it is."""
    monkeypatch.setattr("lmworks.engine.weights.kept_on_disk.cache_folder", lambda: tmp_path)
    assert cache_folder() != tmp_path
    return tmp_path / "weights"


@needs_compiler
@pytest.mark.parametrize("on_disk", ["cached", "mapped"])
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_weights_on_disk_are_the_same(folders, kept, monkeypatch, on_disk, quantization):
    settings = {"quantization": quantization, "dtype": "auto"}
    plain = answers(opened(folders, **settings))
    first = opened(folders, **settings, weights_on_disk=on_disk)
    assert answers(first) == plain
    monkeypatch.setattr("lmworks.engine.weights.loading.load_pretrained", None)
    second = opened(folders, **settings, weights_on_disk=on_disk)
    assert second.engine.runner.native
    assert answers(second) == plain
    assert len(list(kept.glob("*.packed"))) == 1


@needs_compiler
def test_mapped_weights_are_never_written_to(folders, kept, expected):
    first, second = (opened(folders, weights_on_disk="mapped") for _ in range(2))
    first.update_weights(tiny_model(seed=1).state_dict())
    assert answers(first) == expected[1]
    assert answers(second) == answers(opened(folders, weights_on_disk="mapped")) == expected[0]


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "header", "empty"])
def test_damaged_files_are_made_anew(folders, kept, expected, damage, caplog):
    opened(folders, weights_on_disk="cached")
    (file,) = kept.glob("*.packed")
    data = file.read_bytes()
    broken = {"cut": data[:-64], "header": data[:60] + b"?" + data[61:], "empty": b""}[damage]
    file.write_bytes(broken)
    assert answers(opened(folders, weights_on_disk="mapped")) == expected[0]
    assert "made anew" in caplog.text
    assert file.read_bytes() == data


@needs_compiler
def test_other_weights_are_other_files(tmp_path, folders, kept, expected):
    save_pretrained(tiny_model(seed=0), tmp_path / "model")
    byte_tokenizer().save(tmp_path / "model")
    settings = EngineConfig(dtype="float32", weights_on_disk="cached")
    assert answers(LLM(tmp_path / "model", config=settings)) == expected[0]
    answers(LLM(folders / "0", config=settings))
    assert len(list(kept.glob("*.packed"))) == 1, "the same content elsewhere is the same"
    save_pretrained(tiny_model(seed=1), tmp_path / "model")
    assert answers(LLM(tmp_path / "model", config=settings)) == expected[1]
    assert len(list(kept.glob("*.packed"))) == 2


@needs_compiler
def test_the_least_recently_used_go_first(folders, kept, monkeypatch):
    opened(folders, weights_on_disk="cached")
    (file,) = kept.glob("*.packed")
    os.utime(file, (1, 1))
    monkeypatch.setattr("lmworks.engine.weights.kept_on_disk.MOST_BYTES", file.stat().st_size + 10)
    LLM(folders / "1", config=EngineConfig(dtype="float32", weights_on_disk="cached"))
    assert len(list(kept.glob("*.packed"))) == 1
    assert not file.exists()


@needs_compiler
def test_no_disk_is_no_harm(folders, tmp_path, monkeypatch, expected, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("lmworks.engine.weights.kept_on_disk.cache_folder", lambda: tmp_path / "file")
    assert answers(opened(folders, weights_on_disk="mapped")) == expected[0]
    assert "not kept on disk" in caplog.text


@needs_compiler
def test_two_may_write_at_once(folders, kept, expected):
    found = []

    def work():
        found.append(answers(opened(folders, weights_on_disk="mapped")))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected[0]] * 3
    assert sorted(f.suffix for f in kept.iterdir() if not f.name.startswith("content-")) == [".packed"]
    assert torch.is_inference_mode_enabled() is False
