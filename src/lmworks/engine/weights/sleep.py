"""Memory given back while nothing is asked: level 1 drops the cache of keys and values, level 2 the weights too.

Who runs is put back and goes on after waking, as after a preemption: an answer is late, never lost. Until then new
requests are refused with an `EngineUnavailableError`, which a server answers with 503. Deadlines are looked at after
waking. At level 1 weights on an accelerator move to the CPU's memory, unless layers are there already. At level 2 they
are read again from where they came from, which therefore must be a folder; weights that lay beside them are dropped,
those of a draft model stay. Knows no HTTP.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import TYPE_CHECKING, Any

import torch

from lmworks.core.errors import RequestError
from lmworks.engine.execution.cuda_graphs import graph_settings
from lmworks.engine.execution.kv_cache import KVCache
from lmworks.engine.execution.model_runner import ModelRunner
from lmworks.engine.weights.loading import load_weights
from lmworks.models.build import build_model

if TYPE_CHECKING:
    from lmworks.engine.llm_engine import LLMEngine

LEVELS = (1, 2)


def sleep(engine: LLMEngine, level: int = 1) -> None:
    """The operation `sleep`. Asleep already, it may only go deeper.

    Raises:
        RequestError: there is no such level; at level 2, the weights could not be read again, or others are being
            loaded.
    """
    if level not in LEVELS:
        raise RequestError(f"there is no sleep of level {level!r}", "Use 1 (drop the cache) or 2 (the weights too)")
    if level <= engine.sleep_level:
        return
    versions = engine.versions
    if level == 2 and versions.served.path is None:
        raise RequestError("the weights came from memory and could not be read again", "Sleep at level 1")
    if versions.loading:
        raise RequestError("weights are being loaded", "Wait until they are")
    if not engine.sleep_level:
        engine.scheduler.preempt_all()
        engine.blocks.forget_prefixes()
        if engine.speculation is not None:
            engine.speculation.proposer.sleep()
    engine.sleep_level = level
    _set_cache(engine, 0)
    if level == 2:
        versions.other = None
        with torch.device("meta"):
            shape = build_model(engine.model.config)
        old = engine.runner
        _set_runner(engine, ModelRunner(shape, engine.cache, "reference", old.decode_threads, engine.max_model_len))
    elif engine.device.type != "cpu" and not engine.offloads:
        engine.model.to("cpu")
    give_back()


def wake_up(engine: LLMEngine) -> None:
    """The operation `wake_up`: go on where it was left. Awake already, it does nothing.

    Raises:
        CheckpointError: the weights cannot be read any more; the engine sleeps on.
    """
    if not engine.sleep_level:
        return
    if engine.sleep_level == 2:
        path = engine.versions.served.path
        assert path is not None, "it was looked for before going to sleep"
        config = engine.config
        model = load_weights(path, config, engine.dtype, engine.device)
        cache = KVCache(model.config, 0, config.block_size, engine.cache_dtype, engine.device)
        limits = config.attention, config.decode_threads, engine.max_model_len
        _set_runner(engine, ModelRunner(model, cache, *limits, graph_settings(config)))
    elif not engine.offloads:
        engine.model.to(engine.device)
    _set_cache(engine, engine.blocks.num_blocks)
    if engine.speculation is not None:
        engine.speculation.proposer.wake_up()
    engine.sleep_level = 0


def is_sleeping(engine: LLMEngine) -> dict[str, Any]:
    """The operation `is_sleeping`: whether, and how deep."""
    return {"is_sleeping": engine.sleep_level > 0, "level": engine.sleep_level}


def give_back() -> None:
    """Have the C library and the accelerator return memory that nobody uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _set_cache(engine: LLMEngine, num_blocks: int) -> None:
    size = engine.config.block_size
    engine.cache = KVCache(engine.model.config, num_blocks, size, engine.cache_dtype, engine.device)
    engine.runner.attach(engine.cache)


def _set_runner(engine: LLMEngine, runner: ModelRunner) -> None:
    engine.runner = engine.versions.served.runner = runner
    engine.model = runner.model
