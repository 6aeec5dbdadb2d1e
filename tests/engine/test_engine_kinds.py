"""Every kind of attention and position is served as it is computed whole, whatever the engine does inside."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tiny_engine import VOCABULARY, random_prompts

from lmworks.core.errors import ConfigError
from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM, EngineConfig
from lmworks.models.build import build_model
from lmworks.models.config import LayerConfig, ModelConfig, StackConfig
from lmworks.models.head_slots import CausalLMHead, MaskedLMHead, SequenceClassificationHead
from lmworks.models.position_slots import (
    AlibiPositions,
    DynamicScaling,
    LongRopeScaling,
    NoPositions,
    RelativeBiasPositions,
    RotaryPositions,
)
from lmworks.models.slots import (
    AttentionConfig,
    BlockSparseAttentionConfig,
    LinearAttentionConfig,
    LSHAttentionConfig,
    MLAConfig,
    MLPConfig,
    NormConfig,
)
from lmworks.nn.attention_context import PackedContext

NEW = 10
GREEDY = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
LENGTHS = [5, 1, 33, 17, 40, 50]
GLOBAL = AttentionConfig(num_attention_heads=6, num_key_value_heads=2, head_dim=8)
LOCAL = GLOBAL.model_copy(update={"sliding_window": 7})
MLA = MLAConfig(num_attention_heads=3, q_lora_rank=20, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4,
                v_head_dim=10)  # fmt: skip
FACTORS = {"short_factor": (1.0, 1.1, 1.3, 2.0), "long_factor": (1.5, 3.0, 6.0, 9.0)}


def decoder(attention=GLOBAL, positions=None, head=None, **stack) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCABULARY, hidden_size=48, max_position_embeddings=128,
        positions=positions or RotaryPositions(), head=head or CausalLMHead(),
        initializer_range=0.2,
        decoder=StackConfig(num_hidden_layers=4, attention=attention, mlp=MLPConfig(intermediate_size=64), **stack),
    )  # fmt: skip


def rope(scaling) -> RotaryPositions:
    return RotaryPositions(rope_scaling=scaling)


def changed(**values) -> AttentionConfig:
    return GLOBAL.model_copy(update=values)


KINDS = {
    "window": decoder(LOCAL),
    "no positions": decoder(positions=NoPositions()),
    "local and global": decoder(
        pattern="LLG",
        layers={
            "L": LayerConfig(attention=LOCAL),
            "G": LayerConfig(
                attention=changed(num_key_value_heads=1, head_dim=16), positions=RotaryPositions(rope_theta=1e6)
            ),
        },
    ),
    "alibi": decoder(
        changed(num_attention_heads=5, num_key_value_heads=5),
        AlibiPositions(),
        norm=NormConfig(kind="layer"),
        placement="parallel",
    ),
    "alibi in a window": decoder(LOCAL, AlibiPositions()),
    "causal buckets": decoder(
        positions=RelativeBiasPositions(relative_attention_num_buckets=8, relative_attention_max_distance=20)
    ),
    "soft caps": decoder(
        changed(attn_logit_softcapping=2.0),
        head=CausalLMHead(final_logit_softcapping=5.0),
        placement="sandwich",
    ),
    "sinks": decoder(changed(sinks=True, sliding_window=9)),
    "latent": decoder(MLA),
    "latent, direct queries": decoder(MLA.model_copy(update={"q_lora_rank": None}), placement="reordered"),
    "dynamic": decoder(positions=rope(DynamicScaling(factor=4.0, original_max_position_embeddings=16))),
    "longrope within": decoder(positions=rope(LongRopeScaling(original_max_position_embeddings=128, **FACTORS))),
    "longrope": decoder(positions=rope(LongRopeScaling(original_max_position_embeddings=40, **FACTORS))),
}
LENGTH_DEPENDENT = {"dynamic", "longrope", "longrope within"}
SETTINGS = {
    "alone": {"max_num_seqs": 1},
    "chunks, blocks of four": {"max_num_batched_tokens": 7, "max_num_seqs": 3, "block_size": 4},
    "together, blocks of sixteen": {"block_size": 16, "max_num_batched_tokens": 512},
    "tiny cache": {"block_size": 4, "max_model_len": 64, "num_kv_blocks": 17, "max_num_seqs": 4},
    "formula": {"attention": "reference"},
}


@dataclass(frozen=True)
class GrowingContext(PackedContext):
    """One document whose tokens after the prompt came one by one."""

    prompt_length: int = 0

    def lengths(self):
        """The prompt is known at once, every later token when it is computed."""
        return torch.arange(1, int(self.cu_seqlens[-1]) + 1).clamp(min=self.prompt_length)


@torch.no_grad()
def greedy(model, prompt):
    """Greedy decoding that recomputes everything for each token.

    Under dynamic NTK, as everywhere, a generated token's keys stay as they were when it was computed.
    """
    tokens = list(prompt)
    dynamic = model.config == KINDS["dynamic"]
    while len(tokens) < len(prompt) + NEW:
        bounds = torch.tensor([0, len(tokens)], dtype=torch.int32)
        context = GrowingContext(bounds, prompt_length=len(prompt)) if dynamic else PackedContext(bounds)
        hidden = model(torch.tensor(tokens), torch.arange(len(tokens)), context)
        tokens.append(int(model.logits(hidden[-1:]).argmax()))
    return tuple(tokens[len(prompt) :])


def tiny(kind):
    model = build_model(KINDS[kind], seed=3).eval()
    if kind == "sinks":
        for layer in model.decoder.layers:
            torch.nn.init.normal_(layer.self_attn.sinks)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_full_recomputation(kind):
    model, prompts = tiny(kind), random_prompts(LENGTHS)
    expected = [greedy(model, prompt) for prompt in prompts]
    assert len(set(expected)) > 1, "the prompts must matter"
    for name, setting in SETTINGS.items():
        llm = LLM(model, config=EngineConfig(**setting))
        assert [o.outputs[0].token_ids for o in llm.generate(prompts, GREEDY)] == expected, name
        assert llm.stats().preemptions_total > 0 or name != "tiny cache"
        llm.engine.check_integrity()


@pytest.mark.parametrize("kind", KINDS)
def test_prefixes_are_shared_where_keys_do_not_depend_on_what_follows(kind):
    model = tiny(kind)
    shared, *tails = random_prompts([30, 3, 9, 20])
    llm = LLM(model, config=EngineConfig(block_size=4))
    for prompt in (shared + tail for tail in tails):
        assert llm.generate([prompt], GREEDY)[0].outputs[0].token_ids == greedy(model, prompt)
    assert llm.stats().prefix_cache_hits_total == (0 if kind in LENGTH_DEPENDENT else 2 * 28)


def test_a_longer_prompt_turns_the_same_tokens_otherwise():
    """The reason for not sharing them: without it, the test above could not fail."""
    model = tiny("dynamic")
    first, second = (
        model.decoder.position_codes[0](torch.arange(4), lambda n=n: torch.full((4,), n), torch.float32)
        for n in (10, 40)
    )
    assert not torch.equal(first.rotation.cos, second.rotation.cos)


def test_a_latent_cache_holds_what_accounting_says():
    from lmworks.models.accounting import kv_bytes_per_token

    for kind in ("latent", "local and global", "window"):
        cache = LLM(tiny(kind), config=EngineConfig(num_kv_blocks=16)).engine.cache
        held = sum(layer.numel() * layer.itemsize for layer in cache.layers)
        assert held == 16 * 16 * kv_bytes_per_token(KINDS[kind], torch.float32)
    assert kv_bytes_per_token(KINDS["latent"], torch.float32) == 4 * (12 + 4) * 4


def test_dynamic_scaling_reaches_beyond_what_was_trained():
    scaling = DynamicScaling(factor=3.0, original_max_position_embeddings=30)
    config = decoder(positions=rope(scaling)).model_copy(update={"max_position_embeddings": 30})
    assert LLM(build_model(config, seed=0)).max_model_len == 90


REFUSED = {
    "encoder alone": (
        {"encoder": KINDS["window"].decoder.model_copy(update={"causal": False}), "decoder": None,
         "head": MaskedLMHead()},
        "llama model has an encoder alone and generates nothing",
    ),
    "classifier": ({"head": SequenceClassificationHead(num_labels=2)}, "sequence_classification head generates"),
    "sees the future": (
        {"decoder": KINDS["window"].decoder.model_copy(update={"causal": False})},
        "whose tokens see later ones cannot generate",
    ),
    "linear": (
        {"decoder": KINDS["window"].decoder.model_copy(
            update={"attention": LinearAttentionConfig(num_attention_heads=6, head_dim=8)}
        )},
        "linear attention cannot be served from a paged cache. Generate with softmax or latent",
    ),
    "one layer of LSH": (
        {"decoder": KINDS["window"].decoder.model_copy(update={"pattern": "aaah", "layers": {
            "h": LayerConfig(attention=LSHAttentionConfig(num_attention_heads=6, head_dim=8))
        }})},
        "lsh attention cannot be served from a paged cache",
    ),
    "block-sparse": (
        {"decoder": KINDS["window"].decoder.model_copy(update={"attention": BlockSparseAttentionConfig(
            num_attention_heads=6, head_dim=8)})},
        "block_sparse attention cannot be served",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_generate_are_named(name):
    changes, message = REFUSED[name]
    model = build_model(KINDS["window"].model_copy(update=changes), seed=0)
    with pytest.raises(ConfigError, match=message):
        LLM(model)
