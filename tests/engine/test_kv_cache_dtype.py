"""Keys and values of other types than the model's: as near as their rounding allows, and the same in any company."""

from __future__ import annotations

import pytest
from tiny_engine import random_prompts, tiny_model

from lmworks.core.errors import ConfigError
from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM, EngineConfig
from lmworks.models.config import StackConfig
from lmworks.models.slots import MLAConfig, MLPConfig

PROMPTS = random_prompts([5, 1, 33, 17, 70, 16])
PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
NATIVE = {"quantization": "none", "block_size": 4, "max_num_seqs": 8}


def answers(**changes):
    llm = LLM(tiny_model(), config=EngineConfig(**{**NATIVE, "max_num_batched_tokens": 64, **changes}))
    outputs = [llm.generate([prompt], PARAMS)[0] for prompt in PROMPTS] if changes.get("max_num_seqs") == 1 else (
        llm.generate(PROMPTS, PARAMS)
    )  # fmt: skip
    llm.engine.check_integrity()
    return [(o.outputs[0].token_ids, tuple(p.logprob for p in o.outputs[0].logprobs)) for o in outputs]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0.0), ("bfloat16", 0.2), ("int8", 0.2)])
@pytest.mark.parametrize("changes", [{}, {"attention": "reference"}, {"attention": "batched"}])
def test_first_tokens_are_nearly_as_likely_as_with_the_models_own(dtype, bound, changes):
    expected, got = answers(**changes), answers(kv_cache_dtype=dtype, **changes)
    worst = max(abs(a[0] - b[0]) for (_, a), (_, b) in zip(expected, got, strict=True))
    assert worst <= bound
    assert (worst > 0) == (dtype != "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_company_changes_nothing(dtype):
    alone = answers(kv_cache_dtype=dtype, max_num_seqs=1)
    assert answers(kv_cache_dtype=dtype) == alone
    assert answers(kv_cache_dtype=dtype, max_num_batched_tokens=9) == alone


def test_a_cache_of_int8_holds_more():
    def blocks(dtype):
        config = EngineConfig(**NATIVE, kv_cache_dtype=dtype, kv_cache_memory_bytes=60_000, max_num_batched_tokens=64)
        return LLM(tiny_model(), config=config).engine.blocks.num_blocks

    # Vectors of eight: 32 bytes in float32, 16 in bfloat16, 8 and a scale in int8.
    assert blocks("auto") == blocks("float32")
    assert blocks("bfloat16") == pytest.approx(2 * blocks("float32"), abs=1)
    assert blocks("int8") == pytest.approx(32 / 12 * blocks("float32"), abs=2)


def test_latents_keep_the_models_type():
    attention = MLAConfig(num_attention_heads=3, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=10)
    stack = StackConfig(num_hidden_layers=2, attention=attention, mlp=MLPConfig(intermediate_size=64))
    with pytest.raises(ConfigError, match="latent attention has the model's type"):
        LLM(tiny_model(decoder=stack), config=EngineConfig(kv_cache_dtype="int8", max_num_batched_tokens=64))
