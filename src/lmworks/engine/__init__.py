"""Continuous batching over a paged cache: many requests, one model, one forward pass a step. Knows no HTTP.

The public names are imported when first used, so that the scheduler and the block manager stay free of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmworks.core.registry import resolve

if TYPE_CHECKING:
    from lmworks.engine.async_llm import AsyncLLM as AsyncLLM
    from lmworks.engine.config import EngineConfig as EngineConfig
    from lmworks.engine.llm import LLM as LLM
    from lmworks.engine.outputs import Delta as Delta
    from lmworks.engine.stats import EngineStats as EngineStats

_PUBLIC = {
    "AsyncLLM": "lmworks.engine.async_llm:AsyncLLM",
    "Delta": "lmworks.engine.outputs:Delta",
    "EngineConfig": "lmworks.engine.config:EngineConfig",
    "EngineStats": "lmworks.engine.stats:EngineStats",
    "LLM": "lmworks.engine.llm:LLM",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return resolve(_PUBLIC[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
