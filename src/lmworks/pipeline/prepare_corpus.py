"""The stage `data prepare` with the models it asks for, which stand above `data`. Knows no rule."""

from __future__ import annotations

from lmworks.core.lineage import Manifest
from lmworks.data.corpus.prepare import PrepareConfig, prepare


def prepare_corpus(config: PrepareConfig) -> Manifest:
    """Clean, deduplicate and split documents; see `data.corpus.prepare`.

    Raises:
        ConfigError: the embedding model's folder asks for what is not supported.
        CheckpointError: its files are missing or damaged.
    """
    if config.semantic is None:
        return prepare(config)
    from lmworks.engine.pooling.pooling_llm import PoolingLLM

    return prepare(config, PoolingLLM.load(config.semantic.embedder))


__all__ = ["PrepareConfig", "prepare_corpus"]
