"""The engine's settings, under vLLM's names. Knows no model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmworks.core.config import Config

Positive = Annotated[int, Field(gt=0)]


class EngineConfig(Config):
    """How one engine batches, and how much memory its cache takes."""

    max_num_seqs: Positive = 32
    """Sequences in one step at most."""
    max_num_batched_tokens: Positive = 512
    """Tokens in one step at most; a longer prompt is computed in chunks, so that others keep streaming."""
    max_model_len: Positive | None = None
    """Prompt plus completion at most, or what a decoder behind an encoder says; None means the model's context, or less
    where the cache is smaller."""
    block_size: Positive = 16
    """Tokens per cache block; only full blocks are shared between requests."""
    num_kv_blocks: Positive | None = None
    """Blocks in the cache; None derives them from `kv_cache_memory_bytes`."""
    kv_cache_memory_bytes: Positive = 512 * 2**20
    """Memory of the cache at most; what `max_num_seqs` full sequences cannot use is not taken."""
    enable_prefix_caching: bool = True
    """Reuse the cache of a prompt's beginning that was computed before. Never behind an encoder, nor where positions
    depend on the document's length."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and cache; auto keeps the type of a model in memory and takes the fastest for one from disk."""
    max_waiting: Positive = 256
    """Requests that may wait; one more is refused."""
    attention: Literal["batched", "reference"] = "batched"
    """`reference` computes attention by the formula, sequence by sequence."""
    decode_threads: Positive | None = None
    """CPU threads of steps that compute few tokens; None takes half the cores."""
    seed: int = 0
    """Of requests that bring none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}, "
                "and every running sequence needs a token a step"
            )
        return self
