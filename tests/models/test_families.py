"""config.json both ways: every spelling is read, nothing is ignored in silence, what is written reads back."""

import json
import subprocess
import sys
import warnings

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from lmworks.core.errors import ConfigError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.families import FAMILIES, family_named, family_of
from lmworks.models.position_slots import Llama3Scaling, RotaryPositions
from lmworks.models.slots import AttentionConfig, MLPConfig, NormConfig

SIZES = {
    "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


PUBLISHED = {
    "llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248, "llama-3.1-405b": 405_853_388_800, "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824, "smollm2-135m": 134_515_008, "smollm2-1.7b": 1_711_376_384,
    "gpt2": 124_439_808, "gpt2-xl": 1_557_611_200, "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400, "ministral-8b": 8_019_808_256, "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512, "qwen2.5-72b": 72_706_203_648, "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360, "gemma-2b": 2_506_172_416, "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888, "gemma-2-27b": 27_227_128_320, "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952, "phi-2": 2_779_683_840, "phi-3-mini-4k": 3_821_079_552, "phi-4": 14_659_507_200,
    "glm-4-9b": 9_399_951_360, "olmo-1b": 1_176_764_416, "olmo-2-7b": 7_298_617_344, "olmo-3-7b": 7_298_011_136,
    "command-r": 34_980_831_232, "command-r7b": 8_028_033_024, "stablelm-2-1.6b": 1_644_515_328,
    "starcoder2-3b": 3_030_371_328, "smollm3-3b": 3_075_098_624, "seed-oss-36b": 36_151_104_512,
    "ernie-4.5-0.3b": 360_748_032, "exaone-4.0-1.2b": 1_279_391_488,
}  # fmt: skip
"""Parameters, as the published files have them."""


def read(**values):
    hf = {**SIZES, **values}
    return family_of(hf).config_from_hf(hf)


@pytest.mark.parametrize("name", FAMILIES)
def test_presets_survive_the_round_trip(name):
    row = family_named(name)
    for config in row.presets.values():
        assert row.config_from_hf(json.loads(json.dumps(row.to_hf(config)))) == config


def test_presets_have_the_published_sizes():
    presets = {n: c for family in FAMILIES for n, c in family_named(family).presets.items()}
    for name, count in PUBLISHED.items():
        assert size(presets[name]) == count, name


def size(config):
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(config).parameters())


@pytest.mark.parametrize(("name", "count"), [("300m", 3e8), ("1b", 1e9), ("10b", 1e10), ("100b", 1e11)])
def test_the_ladder_has_the_sizes_it_is_named_by(name, count):
    config = family_named("llama").presets[f"llama-{name}"]
    assert size(config) == pytest.approx(count, rel=0.05)
    attention = config.decoder.attention
    assert attention.num_attention_heads * attention.head_dim == config.hidden_size
    assert attention.head_dim in (64, 128)
    assert attention.num_key_value_heads < attention.num_attention_heads


@given(
    heads=st.sampled_from([(4, 1), (4, 2), (4, 4)]), tied=st.booleans(), bias=st.booleans(),
    factor=st.none() | st.just(8.0),
    act=st.sampled_from(["silu", "gelu", "gelu_pytorch_tanh", "relu"]), eos=st.sampled_from([(), (1,), (1, 5)]),
    name=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
)  # fmt: skip
def test_llama_like_round_trip(heads, tied, bias, factor, act, eos, name):
    bias = {"mistral": False, "qwen2": True}.get(name, bias)
    attention = AttentionConfig(
        num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=6, qkv_bias=bias,
        o_bias=bias and name != "qwen2", qk_norm="per_head" if name == "qwen3" else "none",
    )  # fmt: skip
    scaling = None if factor is None else Llama3Scaling(factor=factor)
    config = ModelConfig(
        family=name, vocab_size=11, hidden_size=20, max_position_embeddings=77, tie_word_embeddings=tied,
        positions=RotaryPositions(rope_theta=5e5, rope_scaling=scaling),
        decoder=StackConfig(
            num_hidden_layers=3, attention=attention, mlp=MLPConfig(intermediate_size=9, hidden_act=act)
        ),
        eos_token_ids=eos,
    )  # fmt: skip
    row = family_named(name)
    assert row.config_from_hf(row.to_hf(config)) == config


def test_both_spellings_of_rope_say_the_same():
    new = read(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **SCALING})
    assert new.positions.rope_theta == 5e5
    assert new.positions.rope_scaling.factor == 8
    assert read(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **SCALING}) == new
    assert read(rope_theta=5e5, rope_scaling={"type": "llama3", **SCALING}) == new
    assert read(rope_theta=1e4, rope_scaling=None) == read() == read(rope_parameters={"rope_type": "default"})


def test_written_rope_is_read_by_both_generations_of_readers():
    config = read(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **SCALING})
    written = family_named("llama").to_hf(config)
    old = {k: v for k, v in written.items() if k != "rope_parameters"}
    new = {k: v for k, v in written.items() if k not in ("rope_theta", "rope_scaling")}
    assert family_of(old).config_from_hf(old) == family_of(new).config_from_hf(new) == config
    theirs = transformers.LlamaConfig(**written)
    assert theirs.rope_parameters["rope_theta"] == 5e5
    assert theirs.rope_parameters["factor"] == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_scaling": {"rope_type": "spiral", "factor": 4.0}}, "rope_type 'spiral' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "yarn RoPE scaling lacks factor"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "longrope RoPE scaling lacks long_factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1.0}}, "factor"),
        ({"rope_scaling": "linear"}, "not a mapping"),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "contradicts itself"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"model_type": "mistral", "sliding_window": -1}, "sliding_window = -1 is not a positive integer"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "layer_types has 2 entries for 1 layers"),
        ({"model_type": "qwen3", "layer_types": ["chunked_attention"]}, "layer_types .'chunked_attention'. are not"),
        ({"model_type": "gemma3_text", "rope_parameters": {"rope_type": "default"}}, "do not go by layer type"),
        ({"model_type": "gemma2", "hidden_activation": "relu"}, "hidden_activation = 'relu' is not supported"),
        ({"model_type": "cohere", "use_qk_norm": True}, "use_qk_norm = True is not supported"),
        ({"model_type": "cohere2", "sliding_window": None}, "no layer with a window"),
        ({"model_type": "olmo", "clip_qkv": 8.0}, "clip_qkv = 8.0 is not supported"),
        ({"model_type": "smollm3", "no_rope_layers": [], "num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"model_type": "smollm3", "no_rope_layers": [1], "num_hidden_layers": 2}, "1 entries for 2 layers"),
        ({"model_type": "qwen2", "attention_bias": False}, "attention_bias = False is not supported"),
        ({"hidden_act": "swoosh"}, "hidden_act = 'swoosh' is unknown"),
        ({"hidden_act": []}, r"hidden_act = \[\] is unknown"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
        ({"model_type": "gemma9"}, "model_type 'gemma9' is not supported .did you mean 'gemma"),
        ({"model_type": None, "architectures": ["ResNetModel"]}, "no known architecture"),
        ({"vocab_size": None}, "lacks 'vocab_size'"),
        ({"vocab_size": -3}, "vocab_size = -3"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"eos_token_id": 32}, "outside the vocabulary"),
        ({"hidden_size": "wide", "head_dim": 8}, "hidden_size = 'wide' is not a positive integer"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({**GPT2, "n_head": 3}, "hidden size 16 is not a multiple of the 3 heads"),
    ],
)
def test_what_is_not_supported_is_an_error(values, message):
    with pytest.raises(ConfigError, match=message):
        read(**values)


def window(config, layer=0):
    return config.decoder.layer(layer).attention.sliding_window


def test_windows_are_where_the_file_means_them():
    assert window(read(model_type="mistral")) == 4096
    assert window(read(model_type="mistral", sliding_window=None)) is None
    assert window(read(model_type="mistral", sliding_window=16)) == 16
    assert window(read(model_type="qwen2", use_sliding_window=False, sliding_window=16)) is None
    qwen = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "num_hidden_layers": 3}
    assert [window(read(**qwen, max_window_layers=2), i) for i in range(3)] == [None, None, 16]
    gemma = {"model_type": "gemma3_text", "sliding_window": 8, "num_hidden_layers": 4}
    named = ["sliding_attention"] * 3 + ["full_attention"]
    assert read(**gemma, sliding_window_pattern=4) == read(**gemma, layer_types=named)


def test_gemma_3_turns_by_the_kind_of_layer_in_either_spelling():
    gemma = {"model_type": "gemma3_text", "num_hidden_layers": 6}
    old = read(**gemma, rope_theta=2e6, rope_local_base_freq=5e3, rope_scaling={"rope_type": "linear", "factor": 8.0})
    new = read(**gemma, rope_parameters={
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
    })  # fmt: skip
    assert new == old
    assert (new.positions.rope_theta, new.positions.rope_scaling.factor) == (2e6, 8.0)
    assert new.decoder.layer(0).positions.rope_theta == 5e3
    assert new.decoder.layer(5).positions is None


def test_null_is_not_absent_where_it_means_none():
    assert read(model_type="gemma2").head.final_logit_softcapping == 30
    assert read(model_type="gemma2", final_logit_softcapping=None).head.final_logit_softcapping is None


def test_keys_without_effect_warn():
    with pytest.warns(UserWarning, match="logit_softcap, query_scale have no effect"):
        read(query_scale=2.0, logit_softcap=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(_name_or_path="x", transformers_version="4.0", torch_dtype="bfloat16", use_cache=True)


FILES = {
    "gemma-2-9b-it": {
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 16,
        "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0, "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "bfloat16",
        "transformers_version": "4.42.0.dev0", "use_cache": True, "vocab_size": 256000,
    },
    "gemma-3-4b-it": {
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
        "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
        "model_type": "gemma3", "torch_dtype": "bfloat16", "vision_config": {"model_type": "siglip_vision_model"},
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
    },
    "phi-3-mini-128k-instruct": {
        "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "auto_map": {},
        "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "model_type": "phi3",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": [1.5] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
        "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "use_cache": True, "vocab_size": 32064,
    },
    "c4ai-command-r7b-12-2024": {
        "architectures": ["Cohere2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 5,
        "cache_implementation": "hybrid", "eos_token_id": 255001, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "layer_norm_eps": 1e-05,
        "logit_scale": 0.25, "max_position_embeddings": 8192, "model_type": "cohere2", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "order_of_interleaved_layers": "local_attn_first",
        "pad_token_id": 0, "position_embedding_type": "rope_gptj", "rope_scaling": None, "rope_theta": 50000,
        "rotary_pct": 1.0, "sliding_window": 4096, "sliding_window_pattern": 4, "torch_dtype": "bfloat16",
        "use_cache": True, "use_embedding_sharing": True, "use_gated_activation": True, "use_parallel_block": True,
        "use_qk_norm": False, "vocab_size": 256000,
    },
}  # fmt: skip
"""Published `config.json` files whose spellings are peculiar, LongRoPE's divisors shortened."""


@pytest.mark.parametrize("name", FILES)
def test_published_files_are_read_and_kept(name):
    hf = FILES[name]
    config = family_of(hf).config_from_hf(hf)
    row = family_named(config.family)
    assert row.config_from_hf(row.to_hf(config)) == config
    if name == "gemma-3-4b-it":
        assert config == row.presets["gemma-3-4b"].model_copy(update={"eos_token_ids": (1, 106), "bos_token_id": None})
    if name.startswith("phi"):
        assert config.positions.rope_scaling.original_max_position_embeddings == 4096


def test_architecture_stands_in_for_a_missing_model_type():
    assert read(model_type=None, architectures=["Qwen3ForCausalLM"]).family == "qwen3"


def test_a_family_refuses_what_it_cannot_express():
    llama = read()
    with pytest.raises(ConfigError, match=r"positions .*'rope'.* .as .*'learned'"):
        family_named("gpt2").to_hf(llama)
    biased = llama.decoder.attention.model_copy(update={"o_bias": True})
    odd = llama.model_copy(update={"decoder": llama.decoder.model_copy(update={"attention": biased})})
    with pytest.raises(ConfigError, match=r"decoder.attention.o_bias True .as False"):
        family_named("llama").to_hf(odd)
    layer = llama.model_copy(update={"decoder": llama.decoder.model_copy(update={"norm": NormConfig(kind="layer")})})
    with pytest.raises(ConfigError, match=r"decoder.norm .*'layer'.* .as .*'rms'"):
        family_named("llama").to_hf(layer)
    with pytest.raises(ConfigError, match="did you mean 'llama'"):
        family_named("lama")


@pytest.mark.parametrize("module", ["families.llama", "hub.rules"])
def test_no_module_must_be_imported_before_another(module):
    command = [sys.executable, "-c", f"import lmworks.models.{module}"]
    subprocess.run(command, check=True, capture_output=True)
