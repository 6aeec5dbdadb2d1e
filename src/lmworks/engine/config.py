"""The engine's settings, under vLLM's names. Knows no model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmworks.core.config import Config

Positive = Annotated[int, Field(gt=0)]
Quantization = Literal["auto", "none", "int8", "int4"]
"""Of weights while they are loaded."""
WeightsOnDisk = Literal["never", "cached", "mapped"]
"""Whether packed weights are kept, and how they are used."""


class SpeculativeConfig(Config):
    """How tokens are guessed ahead; answers stay the same."""

    method: Literal["ngram", "draft_model"]
    """Look for the last tokens further up in the text; or ask a smaller model."""
    num_speculative_tokens: Positive = 4
    """Guessed at a time at most."""
    prompt_lookup_min: Positive = 2
    """n-gram: the last tokens that must be found at least."""
    prompt_lookup_max: Positive = 4
    """n-gram: at most so many are looked for, the longest first."""
    model: str | None = None
    """Draft model: its folder. Its cache has as many blocks as the model's own, in addition."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ValueError(
                f"prompt_lookup_min {self.prompt_lookup_min} exceeds prompt_lookup_max {self.prompt_lookup_max}"
            )
        if (self.method == "draft_model") != (self.model is not None):
            raise ValueError("the method draft_model, and no other, needs a model")
        return self


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
    kv_cache_memory_bytes: Positive | None = None
    """Memory of the cache at most; what `max_num_seqs` full sequences cannot use is not taken. None is 512 MiB on a
    CPU, and on a GPU what `gpu_memory_utilization` leaves."""
    enable_prefix_caching: bool = True
    """Reuse the cache of a prompt's beginning that was computed before. Never behind an encoder, nor where positions
    depend on the document's length."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and cache; auto keeps the type of a model in memory and takes the fastest for one from disk."""
    max_num_queued_reqs: Positive = 256
    """Requests that may wait; one more is refused."""
    attention: Literal["auto", "native", "batched", "reference", "flash"] = "auto"
    """`auto` is native where there is native code for the model's attention (C++ on a CPU, Triton on a GPU), else
    batched products of PyTorch; `reference` computes the formula, sequence by sequence. `flash` is FlashAttention 3,
    which `auto` takes for prompts on a GPU where it is installed and fits."""
    decode_threads: Positive | None = None
    """CPU threads of steps that compute few tokens; None takes half the cores."""
    seed: int = 0
    """Of requests that bring none."""
    max_num_queued_tokens: Positive | None = None
    """While prompts of so many tokens wait, no request is accepted; None sets no limit."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """First come, first served; or the lowest `priority` first, which may take others' place."""
    long_prefill_token_threshold: Positive | None = None
    """Tokens of one prompt in one step at most; None lets a prompt longer than a step leave half of it to others."""
    watermark: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """Share of the blocks that stays free when a request is admitted, for the others to grow."""
    speculative_config: SpeculativeConfig | None = None
    """Guess tokens ahead and verify many in one step; None does not."""
    quantization: Quantization = "auto"
    """Round floating-point weights of linear maps while loading them from disk, 32 of them to a scale; those on a grid
    keep it. auto: a server on a CPU rounds to 8 bits unless `dtype` is given; all else takes weights as they are.
    A model in memory is copied unless auto."""
    max_loras: Positive = 16
    """Adapters that may be loaded at a time."""
    max_lora_rank: Positive = 64
    """Of an adapter at most."""
    weights_on_disk: WeightsOnDisk = "never"
    """Keep packed weights in the cache folder for the next start: `cached` reads them into memory in a fraction of a
    second; `mapped` uses them where they lie, so that processes share them and a system short of memory may drop pages
    and read them again; steps are somewhat slower, for the pages are small."""
    cpu_offload_gb: Annotated[float, Field(ge=0)] = 0.0
    """On a GPU: at least so many GiB of weights, those of the last layers, stay in the CPU's memory, each layer copied
    while the one before computes. Steps are not recorded then, and new weights come as versions only."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Of a model from disk; auto is a GPU where PyTorch sees one. A model in memory stays where it is unless another
    is named."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Share of a GPU's memory for weights, activations and cache together."""
    enforce_eager: bool = False
    """On a GPU: launch every kernel of every step, and record no CUDA graphs."""
    compile: bool = False
    """On a GPU: have `torch.compile` fuse what is between products and attention, beside the first requests."""

    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Of keys and values, on a CPU; auto is the model's. `int8` rounds every vector on a grid of its own: little more
    than half of bfloat16's memory. Latents (MLA) are not rounded."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}, "
                "and every running sequence needs a token a step"
            )
        return self

    def for_server(self) -> Self:
        """The same with `quantization` decided as a server on a CPU does."""
        if self.quantization != "auto":
            return self
        return self.model_copy(update={"quantization": "int8" if self.dtype == "auto" else "none"})
