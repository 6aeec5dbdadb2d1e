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
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, NormConfig, RotaryPositions, StackConfig
from lmworks.models.families import FAMILIES, family_named, family_of

SIZES = {
    "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def read(**values):
    hf = {**SIZES, **values}
    return family_of(hf).config_from_hf(hf)


@pytest.mark.parametrize("name", FAMILIES)
def test_presets_survive_the_round_trip(name):
    row = family_named(name)
    for config in row.presets.values():
        assert row.config_from_hf(json.loads(json.dumps(row.to_hf(config)))) == config


def test_presets_have_the_published_sizes():
    published = {"llama-2-7b": 6_738_415_616, "llama-3-8b": 8_030_261_248, "llama-3.2-1b": 1_235_814_400,
                 "smollm2-135m": 134_515_008, "gpt2": 124_439_808, "gpt2-xl": 1_557_611_200,
                 "mistral-7b-v0.3": 7_248_023_552, "qwen2.5-0.5b": 494_032_768, "qwen3-0.6b": 596_049_920}  # fmt: skip
    presets = {n: c for family in FAMILIES for n, c in family_named(family).presets.items()}
    for name, count in published.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in build_model(presets[name]).parameters()) == count, name


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
        o_bias=bias and name != "qwen2", qk_norm=name == "qwen3",
    )  # fmt: skip
    config = ModelConfig(
        family=name, vocab_size=11, hidden_size=20, max_position_embeddings=77, tie_word_embeddings=tied,
        positions=RotaryPositions(rope_theta=5e5, rope_scaling=None if factor is None else {"factor": factor}),
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
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "rope_type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
        ({"rope_scaling": "linear"}, "not a mapping"),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "contradicts itself"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial rotary"),
        ({"model_type": "mistral", "sliding_window": 16}, "sliding_window = 16 is active"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16}, "sliding_window = 16 is active"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"model_type": "qwen2", "attention_bias": False}, "contradicts model_type 'qwen2'"),
        ({"hidden_act": "quick_gelu"}, "quick_gelu"),
        ({"hidden_act": []}, r"hidden_act = \[\] is unknown"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
        ({"model_type": "gemma3"}, "model_type 'gemma3' is not supported"),
        ({"model_type": None, "architectures": ["BertModel"]}, "no known architecture"),
        ({"vocab_size": None}, "lacks 'vocab_size'"),
        ({"vocab_size": -3}, "vocab_size = -3"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"eos_token_id": 32}, "outside the vocabulary"),
        ({"hidden_size": "wide", "head_dim": 8}, "hidden_size = 'wide' is not a positive integer"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({**GPT2, "n_head": 3}, "not a multiple of n_head"),
    ],
)
def test_what_is_not_supported_is_an_error(values, message):
    with pytest.raises(ConfigError, match=message):
        read(**values)


def test_inactive_windows_are_fine():
    assert read(model_type="mistral", sliding_window=4096).family == "mistral"
    assert read(model_type="qwen2", use_sliding_window=False, sliding_window=16).family == "qwen2"


def test_keys_without_effect_warn():
    with pytest.warns(UserWarning, match="logit_softcap, query_scale have no effect"):
        read(query_scale=2.0, logit_softcap=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(_name_or_path="x", transformers_version="4.0", torch_dtype="bfloat16", use_cache=True)


def test_architecture_stands_in_for_a_missing_model_type():
    assert read(model_type=None, architectures=["Qwen3ForCausalLM"]).family == "qwen3"


def test_a_family_refuses_what_it_cannot_express():
    llama = read()
    with pytest.raises(ConfigError, match="learned positions"):
        family_named("gpt2").to_hf(llama)
    biased = llama.decoder.attention.model_copy(update={"o_bias": True})
    odd = llama.model_copy(update={"decoder": llama.decoder.model_copy(update={"attention": biased})})
    with pytest.raises(ConfigError, match="cannot express this model's decoder"):
        family_named("llama").to_hf(odd)
    layer = llama.model_copy(update={"decoder": llama.decoder.model_copy(update={"norm": NormConfig(kind="layer")})})
    with pytest.raises(ConfigError, match="RMSNorm"):
        family_named("llama").to_hf(layer)
    with pytest.raises(ConfigError, match="did you mean 'llama'"):
        family_named("lama")


@pytest.mark.parametrize("module", ["families.llama", "hub.rules"])
def test_no_module_must_be_imported_before_another(module):
    command = [sys.executable, "-c", f"import lmworks.models.{module}"]
    subprocess.run(command, check=True, capture_output=True)
