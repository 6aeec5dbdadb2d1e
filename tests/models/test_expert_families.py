"""Mixtures of experts, latent attention and the decoders before Llama: published sizes, old spellings, bad input."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.models.build import build_model
from lmworks.models.families import FAMILIES, family_named, family_of
from lmworks.models.hub import load_pretrained, save_pretrained

BILLIONS = {
    "mixtral-8x7b": 46.703, "mixtral-8x22b": 140.630, "qwen1.5-moe-a2.7b": 14.316, "qwen2-57b-a14b": 57.409,
    "qwen3-30b-a3b": 30.532, "qwen3-235b-a22b": 235.094, "olmoe-1b-7b": 6.919, "deepseek-v2-lite": 15.706,
    "deepseek-v2": 235.741, "deepseek-v3": 671.026, "gpt-oss-20b": 20.915, "gpt-oss-120b": 116.829,
    "pythia-70m": 0.070, "pythia-1b": 1.012, "pythia-12b": 11.846, "gpt-neox-20b": 20.555, "bloom-560m": 0.559,
    "bloom": 176.247, "mpt-7b": 6.649, "opt-125m": 0.125, "gpt-j-6b": 6.051, "starcoder": 15.517,
}  # fmt: skip
"""Parameters, as their publishers count them."""
SIZES = {"vocab_size": 29, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}
MIXTRAL = {**SIZES, "model_type": "mixtral", "intermediate_size": 8, "num_local_experts": 3, "num_experts_per_tok": 2}
QWEN3 = {
    **SIZES, "model_type": "qwen3_moe", "intermediate_size": 20, "moe_intermediate_size": 8, "num_experts": 3,
    "num_experts_per_tok": 2,
}  # fmt: skip
DEEPSEEK = {
    **SIZES, "model_type": "deepseek_v3", "intermediate_size": 20, "moe_intermediate_size": 8, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
    "q_lora_rank": 6, "kv_lora_rank": 6, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4,
}  # fmt: skip
V2 = {**DEEPSEEK, "model_type": "deepseek_v2"}
NEOX = {**SIZES, "model_type": "gpt_neox", "hidden_size": 16, "intermediate_size": 20}
BLOOM = {"model_type": "bloom", "vocab_size": 29, "n_embed": 12, "n_layer": 2, "num_attention_heads": 3}
FALCON = {**SIZES, "model_type": "falcon"}
OSS = {**MIXTRAL, "model_type": "gpt_oss", "head_dim": 6}


def read(hf, **values):
    hf = {**hf, **values}
    return family_of(hf).config_from_hf(hf)


def saved(hf, folder):
    save_pretrained(build_model(read(hf), seed=0), folder)
    return folder


def rewrite(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())


def test_presets_have_the_published_sizes():
    presets = {n: c for family in FAMILIES for n, c in family_named(family).presets.items()}
    for name, billions in BILLIONS.items():
        with torch.device("meta"):
            model = build_model(presets[name])
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=6e-4), name


def test_a_published_config_is_read_without_warnings():
    """Of DeepSeek-V3, as it was released; warnings are errors here."""
    yarn = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096, "type": "yarn"}  # fmt: skip
    published = {
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3,
        "hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 18432,
        "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3",
        "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
        "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "pretraining_tp": 1,
        "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
        "rope_scaling": yarn, "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
        "seq_aux": True, "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16", "transformers_version": "4.33.1", "use_cache": True, "v_head_dim": 128,
        "vocab_size": 129280,
    }  # fmt: skip
    assert read(published) == family_named("deepseek_v3").presets["deepseek-v3"]


def dense_layers(config):
    return [config.decoder.layer(i).mlp.kind == "dense" for i in range(config.decoder.num_hidden_layers)]


@pytest.mark.parametrize(
    ("hf", "dense"),
    [
        ({**DEEPSEEK, "first_k_dense_replace": 0}, "---"),
        ({**DEEPSEEK, "first_k_dense_replace": 2}, "DD-"),
        ({**DEEPSEEK, "first_k_dense_replace": 3}, "DDD"),
        ({**DEEPSEEK, "num_hidden_layers": 7, "moe_layer_freq": 3}, "DDD-DD-"),
        (QWEN3, "---"),
        ({**QWEN3, "mlp_only_layers": [1]}, "-D-"),
        ({**QWEN3, "num_hidden_layers": 4, "decoder_sparse_step": 2}, "D-D-"),
    ],
)
def test_which_layers_have_experts(hf, dense):
    config = read(hf)
    assert "".join("D" if d else "-" for d in dense_layers(config)) == dense
    written = family_named(config.family).to_hf(config)
    assert read(written) == config
    if "D" in dense:
        assert written["intermediate_size"] == 20


@pytest.mark.parametrize("hf", [MIXTRAL, QWEN3], ids=["mixtral", "qwen3_moe"])
def test_experts_are_read_one_by_one_and_stacked(hf, tmp_path):
    folder = saved(hf, tmp_path)
    model = load_pretrained(folder)
    single = load_file(folder / "model.safetensors")
    theirs = "block_sparse_moe.experts" if hf is MIXTRAL else "mlp.experts"
    gate, up, down = ("w1", "w3", "w2") if hf is MIXTRAL else ("gate_proj", "up_proj", "down_proj")
    assert single[f"model.layers.2.{theirs}.1.{up}.weight"].shape == (8, 12)

    def stack(state):
        kept = {n: t for n, t in state.items() if theirs not in n}
        for i in range(3):
            one = [{p: state[f"model.layers.{i}.{theirs}.{e}.{p}.weight"] for p in (gate, up, down)} for e in range(3)]
            both = torch.stack([torch.cat([expert[gate], expert[up]]) for expert in one])
            kept[f"model.layers.{i}.{theirs}.gate_up_proj"] = both
            kept[f"model.layers.{i}.{theirs}.down_proj"] = torch.stack([expert[down] for expert in one])
        return kept

    rewrite(folder, stack)
    assert same(load_pretrained(folder), model)


def test_an_absent_expert_is_named(tmp_path):
    folder = saved(MIXTRAL, tmp_path)
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    rewrite(folder, lambda state: {n: t for n, t in state.items() if n != name})
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        load_pretrained(folder)


def test_layers_that_predict_further_tokens_are_not_read(tmp_path):
    folder = saved(DEEPSEEK, tmp_path)
    model = load_pretrained(folder)
    rewrite(folder, lambda state: state | {"model.layers.3.eh_proj.weight": torch.zeros(12, 24)})
    assert same(load_pretrained(folder), model)
    rewrite(folder, lambda state: state | {"model.layers.4.eh_proj.weight": torch.zeros(12, 24)})
    with pytest.raises(CheckpointError, match=r"unexpected: model\.layers\.4"):
        load_pretrained(folder)


def test_mxfp4_releases_are_refused(tmp_path):
    folder = saved(OSS, tmp_path)
    file = folder / "config.json"
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantization}))
    with pytest.raises(ConfigError, match=r"quantization_config is not supported.*mxfp4"):
        load_pretrained(folder)


def test_fp8_releases_are_decoded(tmp_path):
    """DeepSeek's blocks, experts and latent projections included."""
    folder = saved(DEEPSEEK, tmp_path)
    file = folder / "config.json"
    plain = load_file(folder / "model.safetensors")
    chosen = [n for n in plain if "_proj" in n and n.endswith(".weight")]
    assert any("experts.1." in name for name in chosen)
    narrow = {n: plain[n].to(torch.float8_e4m3fn) for n in chosen}
    rewrite(folder, lambda state: state | {n: t.float() * 0.5 for n, t in narrow.items()})
    expected = load_pretrained(folder)
    halves = {f"{n}_scale_inv": torch.full([-(-s // 8) for s in plain[n].shape], 0.5) for n in chosen}
    rewrite(folder, lambda state: state | narrow | halves)
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [8, 8]}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantization}))
    assert same(load_pretrained(folder), expected)


def test_heads_are_read_under_both_names(tmp_path):
    folder = saved(NEOX, tmp_path)
    model = load_pretrained(folder)
    assert "embed_out.weight" in load_file(folder / "model.safetensors")
    rewrite(folder, lambda state: {n.replace("embed_out", "lm_head"): t for n, t in state.items()})
    assert same(load_pretrained(folder), model)


def test_published_bloom_files_have_no_prefix(tmp_path):
    folder = saved(BLOOM, tmp_path)
    model = load_pretrained(folder)
    rewrite(folder, lambda state: {n.removeprefix("transformer."): t for n, t in state.items()})
    assert same(load_pretrained(folder), model)


def test_old_spellings_mean_the_same():
    old = read(NEOX, rotary_pct=0.5, rotary_emb_base=500)
    assert old == read(NEOX, rope_parameters={"rope_theta": 500, "partial_rotary_factor": 0.5})
    written = family_named("gpt_neox").to_hf(old)
    assert (written["rotary_pct"], written["rotary_emb_base"]) == (0.5, 500)
    assert read(NEOX).positions.partial_rotary_factor == 0.25
    renamed = {"hidden_size": 12, "num_hidden_layers": 2, "n_head": 3}
    assert read(BLOOM) == read({"model_type": "bloom", "vocab_size": 29, **renamed})
    assert read(QWEN3) == read({k: v for k, v in QWEN3.items() if k != "num_experts"}, num_local_experts=3)


@pytest.mark.parametrize(
    ("hf", "values", "message"),
    [
        (NEOX, {"rotary_pct": 0.5, "partial_rotary_factor": 0.25}, "rotary_pct = 0.5, partial_rotary_factor = 0.25"),
        (NEOX, {"rotary_pct": 0.5, "rotary_emb_base": 10, "rope_parameters": {"rope_theta": 20}}, "contradicts itself"),
        (NEOX, {"num_attention_heads": 5}, "16 is not a multiple of the 5 heads"),
        (BLOOM, {"hidden_size": 16}, "n_embed = 12, hidden_size = 16"),
        (BLOOM, {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        (FALCON, {"alibi": True}, "alibi = True is not supported"),
        (QWEN3, {"use_sliding_window": True}, "windows are not supported beside experts"),
        (QWEN3, {"num_experts_per_tok": 4}, "num_experts_per_tok 4 exceeds the 3 experts"),
        (DEEPSEEK, {"topk_method": "greedy"}, "topk_method = 'greedy' is not supported"),
        (DEEPSEEK, {"n_group": 3}, "n_group 3 must divide num_experts 4"),
        (V2, {"topk_method": "noaux_tc"}, "topk_method 'noaux_tc' is not supported"),
        (V2, {"norm_topk_prob": True}, "norm_topk_prob = True is not supported"),
        (V2, {"qk_rope_head_dim": 3}, "3 coordinates to rotate must be even"),
        (MIXTRAL, {"num_local_experts": 0}, "num_local_experts = 0 is not a positive integer"),
        (OSS, {"swiglu_alpha": 1.0}, "swiglu_alpha = 1.0 is not supported"),
        ({**SIZES, "model_type": "opt", "ffn_dim": 20}, {"word_embed_proj_dim": 8}, "word_embed_proj_dim = 8"),
        ({**SIZES, "model_type": "mpt"}, {"d_model": 12, "attn_config": {"clip_qkv": 6}}, "attn_config.clip_qkv = 6"),
        ({**MIXTRAL, "model_type": "olmoe"}, {"clip_qkv": 8.0}, "clip_qkv = 8.0 is not supported"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(hf, values, message):
    with pytest.raises(ConfigError) as error:
        read(hf, **values)
    assert message in str(error.value)
