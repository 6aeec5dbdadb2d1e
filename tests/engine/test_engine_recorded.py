"""Whole requests through recorded steps give the answers of an engine without; a GPU's memory and what is left."""

from __future__ import annotations

import pytest
import torch
from tiny_engine import random_prompts, tiny_model

from lmworks.core.errors import ConfigError
from lmworks.core.sampling import SamplingParams
from lmworks.engine import EngineConfig
from lmworks.engine.config import SpeculativeConfig
from lmworks.engine.execution.cuda_graphs import DecodeStep, GraphRunner, graph_settings
from lmworks.engine.execution.device_memory import DEFAULT_MEMORY, cache_memory, left_for_cache, run_largest_step
from lmworks.engine.execution.kv_cache import KVCache
from lmworks.engine.execution.packed_linear import pack_linears
from lmworks.engine.llm_engine import LLMEngine
from lmworks.engine.request import Request
from lmworks.engine.weights.loading import load
from lmworks.kernels.native.library import library

CPU, GIB = torch.device("cpu"), 2**30


def engine_with_recordings(config, *, recorded):
    """The recordings are functions; linear maps give the same bits in any batch."""
    model = tiny_model().eval()
    pack_linears(model, "none")
    engine = LLMEngine(model, None, config)
    blocks = engine.blocks.num_blocks
    engine.cache = KVCache(model.config, blocks + 1, config.block_size, model.dtype, CPU)
    runner = engine.runner
    runner.native = False
    runner.attach(engine.cache)
    replayed = []

    def record(step):
        def replay():
            replayed.append(step)
            step()

        return replay

    if recorded:
        runner._graphs = GraphRunner(
            DecodeStep(model, engine.cache.layers), max_num_seqs=config.max_num_seqs, max_model_len=128,
            block_size=config.block_size, spare_block=blocks, vocabulary=model.config.vocab_size, device=CPU,
            record=record,
        )  # fmt: skip
    return engine, replayed


def answers(engine, prompts):
    params = [
        SamplingParams(
            max_tokens=20 + i, ignore_eos=True, **({"temperature": 0} if i % 2 else {"seed": i, "top_p": 0.9})
        )
        for i in range(len(prompts))
    ]
    for i, (prompt, p) in enumerate(zip(prompts, params, strict=True)):
        engine.add_request(Request(str(i), tuple(prompt), p))
    deltas = []
    while engine.has_unfinished:
        deltas += engine.step()
        engine.check_integrity()
    said = {str(i): [] for i in range(len(prompts))}
    for delta in deltas:
        said[delta.request_id] += delta.token_ids
    return said


@pytest.mark.skipif(library() is None, reason="no compiler: no operation attends by tensors")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_kv_blocks": 16},  # someone is preempted
        {"speculative_config": SpeculativeConfig(method="ngram", num_speculative_tokens=3)},
    ],
)
def test_answers_are_the_same_from_recordings(settings):
    prompts = [*random_prompts([5, 40, 17, 3, 60]), [5, 6, 7] * 10]
    config = EngineConfig(max_num_seqs=6, max_num_batched_tokens=32, block_size=8, **settings)
    engine, replayed = engine_with_recordings(config, recorded=True)
    expected, _ = engine_with_recordings(config, recorded=False)
    assert answers(engine, prompts) == answers(expected, prompts)
    assert len(replayed) > 10


def test_recording_may_be_switched_off():
    assert graph_settings(EngineConfig(enforce_eager=True)) is None
    assert graph_settings(EngineConfig(compile=True)).compile


def test_a_gpu_that_is_not_there_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"PyTorch sees no GPU\. Set device to auto or cpu"):
        load(tiny_model(), None, EngineConfig(device="cuda"))


def test_compiling_on_a_cpu_is_said_to_have_no_effect(caplog):
    LLMEngine(tiny_model().eval(), None, EngineConfig(compile=True))
    assert "compile has no effect on cpu" in caplog.text


def test_the_cache_gets_what_weights_activations_and_others_leave_of_the_share():
    assert left_for_cache(80 * GIB, 2 * GIB, 10 * GIB, 0.9) == 60 * GIB
    with pytest.raises(
        ConfigError, match=r"take 75\.00 GiB and others 2\.00 GiB, more than gpu_memory_utilization 0\.9"
    ):
        left_for_cache(80 * GIB, 2 * GIB, 75 * GIB, 0.9)


def test_on_a_cpu_nothing_is_run_to_size_the_cache():
    assert cache_memory(tiny_model(), EngineConfig()) == DEFAULT_MEMORY


@pytest.mark.parametrize("longest", [None, 7])
def test_the_largest_step_has_all_tokens_and_no_position_beyond_the_context(longest):
    model = tiny_model().eval()
    seen = []
    model.embed_tokens.register_forward_hook(lambda _module, given, _out: seen.append(len(given[0])))
    run_largest_step(model, EngineConfig(max_num_batched_tokens=200, max_num_seqs=3, max_model_len=longest))
    assert seen == [200]
