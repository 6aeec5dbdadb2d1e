"""The compress stage: its folder means the same to us and to transformers, and its losses are recorded."""

import json

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers
from transformers import AutoModelForCausalLM

from lmworks.compress.round_to_nearest import QuantizeConfig, quantizable, quantize, quantize_linears
from lmworks.core.errors import CheckpointError, ConfigError, DataError, TokenizerError
from lmworks.core.lineage import load_manifest, verify, write_artifact
from lmworks.models.accounting import weight_bytes
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.families import family_named
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.models.slots import AttentionConfig, MLPConfig
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.quantized import QuantizedLinear
from lmworks.tokenization import load_tokenizer

TEXTS = ["the cat sat on the mat", "a dog ran", "Größe und 猫"] * 4


def model_config(**changes):
    return ModelConfig(
        vocab_size=259, hidden_size=30, max_position_embeddings=64, bos_token_id=0, eos_token_ids=(0,),
        decoder=StackConfig(
            num_hidden_layers=2, mlp=MLPConfig(intermediate_size=50),
            attention=AttentionConfig(num_attention_heads=3, num_key_value_heads=1, head_dim=10),
        ),
    ).model_copy(update=changes)  # fmt: skip


def write_model(folder, config):
    """A model artifact with a byte-level tokenizer."""
    vocabulary = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    vocabulary |= {c: i + 3 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(vocabulary)[:3])
    model = build_model(config, seed=0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    with write_artifact(folder, "model", config={}) as writer:
        save_pretrained(model, writer.folder)
        tokenizer.save(str(writer.folder / "tokenizer.json"))
        names = {
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        (writer.folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(params=[{}, {"tie_word_embeddings": False}, {"family": "qwen2", "decoder": None}])
def model(request, tmp_path):
    changes = dict(request.param)
    if "decoder" in changes:
        attention = model_config().decoder.attention.model_copy(update={"qkv_bias": True})
        changes["decoder"] = model_config().decoder.model_copy(update={"attention": attention})
    return write_model(tmp_path / "model", model_config(**changes))


@pytest.fixture
def corpus(tmp_path):
    with write_artifact(tmp_path / "corpus", "corpus", config={}) as writer:
        rows = [{"id": str(i), "text": t, "source": "", "license": ""} for i, t in enumerate(TEXTS)]
        (writer.folder / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "corpus"


def logits(model, ids):
    with torch.no_grad():
        context = PackedContext(torch.tensor([0, len(ids)], dtype=torch.int32))
        return model.logits(model(ids, torch.arange(len(ids)), context))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_reads_the_folder_and_agrees(model, tmp_path, dtype):
    quantize(QuantizeConfig(model=model, output=tmp_path / "int8", dtype=dtype))
    ours = load_pretrained(tmp_path / "int8", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "int8", dtype=torch.float32).eval()
    ids = torch.arange(40)
    with torch.no_grad():
        torch.testing.assert_close(logits(ours, ids), theirs(ids[None]).logits[0], atol=1e-5, rtol=1e-5)
    assert sum(isinstance(m, QuantizedLinear) for m in ours.modules()) == 14
    assert not isinstance(ours.lm_head, QuantizedLinear)


@pytest.mark.parametrize(("group_size", "dtype"), [(10, "float32"), (10, "bfloat16"), (0, "float32")])
def test_transformers_reads_four_bits_and_agrees(tmp_path, group_size, dtype):
    model = write_model(tmp_path / "model", model_config())
    made = quantize(QuantizeConfig(model=model, output=tmp_path / "int4", bits=4, group_size=group_size, dtype=dtype))
    ours = load_pretrained(tmp_path / "int4", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "int4", dtype=torch.float32).eval()
    ids = torch.arange(40)
    with torch.no_grad():
        torch.testing.assert_close(logits(ours, ids), theirs(ids[None]).logits[0], atol=1e-5, rtol=1e-5)
    grid = ours.decoder.layers[0].mlp.down_proj.quantized_weight()
    assert (grid.bits, grid.group_size, grid.zero) == (4, group_size, None)
    linears = [m for m in ours.modules() if isinstance(m, QuantizedLinear)]
    scales = sum(m.weight_scale.numel() for m in linears)
    weights = sum(m.in_features * m.out_features for m in linears)
    assert made.metrics["quantized_bytes"] == weights / 2 + scales * getattr(torch, dtype).itemsize


def test_four_bits_have_groups_of_32_unless_told_otherwise(tmp_path):
    model = write_model(tmp_path / "model", model_config())
    with pytest.raises(ConfigError, match=r"group_size = 32 does not divide the 30 columns of decoder\.layers\.0"):
        quantize(QuantizeConfig(model=model, output=tmp_path / "x", bits=4))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("family", ["phi3", "gpt_neox"])
def test_fused_matrices_are_quantized_by_row_and_read_by_transformers(tmp_path, family):
    """Queries, keys and values are one matrix on disk and three of ours."""
    preset = next(iter(family_named(family).presets.values()))
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    attention = preset.decoder.attention.model_copy(update=sizes)
    mlp = preset.decoder.mlp.model_copy(update={"intermediate_size": 64})
    decoder = preset.decoder.model_copy(update={"num_hidden_layers": 1, "attention": attention, "mlp": mlp})
    ids = {"bos_token_id": 0, "eos_token_ids": (0,), "pad_token_id": None}
    config = preset.model_copy(update={"vocab_size": 259, "hidden_size": 32, "decoder": decoder, **ids})
    folder = write_model(tmp_path / "model", config)
    quantize(QuantizeConfig(model=folder, output=tmp_path / "int8", dtype="float32"))
    ours = load_pretrained(tmp_path / "int8")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "int8").eval()
    ids = torch.arange(40)
    with torch.no_grad():
        torch.testing.assert_close(logits(ours, ids), theirs(ids[None]).logits[0], atol=1e-4, rtol=1e-4)
    plain = load_pretrained(folder)
    quantize_linears(plain, ["decoder.layers.0.self_attn.q_proj"], torch.float32)
    with pytest.raises(ConfigError, match=r"is one matrix on disk, and .* in it are quantized differently"):
        save_pretrained(plain, tmp_path / "half")


def test_the_artifact_is_whole(model, corpus, tmp_path):
    manifest = quantize(QuantizeConfig(model=model, output=tmp_path / "int8", corpus=corpus))
    assert manifest == verify(tmp_path / "int8")
    assert {p.role for p in manifest.parents} == {"model", "corpus"}
    assert load_tokenizer(tmp_path / "int8").fingerprint == load_tokenizer(model).fingerprint
    assert load_pretrained(tmp_path / "int8").config == load_pretrained(model).config
    metrics = load_manifest(tmp_path / "int8").metrics
    config = load_pretrained(model).config
    assert metrics["quantized_bytes"] + metrics["floating_point_bytes"] == weight_bytes(
        config, torch.bfloat16, int8=True
    )
    assert metrics["weight_bytes_after"] < 0.5 * metrics["weight_bytes_before"]
    assert abs(metrics["bits_per_byte"] - metrics["bits_per_byte_before"]) < 0.05
    assert 0 < metrics["logit_error_mean"] < metrics["logit_error_max"] < 1
    assert metrics["same_top_token"] > 0.8


def test_the_measured_bits_are_those_of_the_written_model(corpus, tmp_path):
    """Against a sum by hand: every token given the begin mark and what is before it."""
    model = write_model(tmp_path / "model", model_config())
    manifest = quantize(QuantizeConfig(model=model, output=tmp_path / "int8", corpus=corpus, dtype="float32"))
    tokenizer, written = load_tokenizer(model), load_pretrained(tmp_path / "int8")
    nats = 0.0
    for text in TEXTS:
        ids = torch.tensor([0, *tokenizer.encode(text)])
        nats += torch.nn.functional.cross_entropy(logits(written, ids[:-1]), ids[1:], reduction="sum").item()
    expected = nats / torch.log(torch.tensor(2.0)).item() / sum(len(t.encode()) for t in TEXTS)
    assert manifest.metrics["bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_ignored_maps_stay_floating_point(tmp_path):
    model = write_model(tmp_path / "model", model_config())
    ignore = ("lm_head", "model.layers.0.mlp.down_proj", r"re:.*k_proj$")
    quantize(QuantizeConfig(model=model, output=tmp_path / "int8", ignore=ignore, dtype="float32"))
    ours = load_pretrained(tmp_path / "int8")
    kept = {n for n, m in ours.named_modules() if isinstance(m, torch.nn.Linear)}
    assert kept == {
        "lm_head",
        "decoder.layers.0.mlp.down_proj",
        *(f"decoder.layers.{i}.self_attn.k_proj" for i in (0, 1)),
    }
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "int8").eval()
    ids = torch.arange(20)
    with torch.no_grad():
        torch.testing.assert_close(logits(ours, ids), theirs(ids[None]).logits[0], atol=1e-5, rtol=1e-5)


def test_a_quantized_model_is_saved_and_loaded_unchanged(tmp_path):
    model = build_model(model_config(), seed=0)
    quantize_linears(model, quantizable(model), torch.float32)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[n], t) for n, t in model.state_dict().items())


def test_refusals(tmp_path, corpus):
    model = write_model(tmp_path / "model", model_config())
    with pytest.raises(ConfigError, match=r"'model.layers.9.mlp.up_proj' names no linear map"):
        quantize(QuantizeConfig(model=model, output=tmp_path / "x", ignore=("model.layers.9.mlp.up_proj",)))
    with pytest.raises(ConfigError, match="leaves nothing to quantize"):
        quantize(QuantizeConfig(model=model, output=tmp_path / "x", ignore=("re:.*",)))
    (corpus / "validation.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no text"):
        quantize(QuantizeConfig(model=model, output=tmp_path / "x", corpus=corpus))
    (corpus / "validation.jsonl").write_text('{"id": 1}')
    with pytest.raises(DataError, match="cannot read validation texts"):
        quantize(QuantizeConfig(model=model, output=tmp_path / "x", corpus=corpus))
    quantize(QuantizeConfig(model=model, output=tmp_path / "int8"))
    with pytest.raises(ConfigError, match="quantized already"):
        quantize(QuantizeConfig(model=tmp_path / "int8", output=tmp_path / "x"))
    save_pretrained(build_model(model_config(vocab_size=100), seed=0), tmp_path / "bare")
    with pytest.raises(TokenizerError):
        quantize(QuantizeConfig(model=tmp_path / "bare", output=tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_gpt2_has_no_plain_linear_maps(tmp_path):
    preset = family_named("gpt2").presets["gpt2"]
    attention = preset.decoder.attention.model_copy(
        update={"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    )
    mlp = preset.decoder.mlp.model_copy(update={"intermediate_size": 16})
    decoder = preset.decoder.model_copy(update={"num_hidden_layers": 1, "attention": attention, "mlp": mlp})
    sizes = {"vocab_size": 259, "hidden_size": 16, "bos_token_id": 0, "eos_token_ids": (0,), "decoder": decoder}
    with pytest.raises(ConfigError, match="family 'gpt2' cannot be stored in int8"):
        quantizable(build_model(preset.model_copy(update=sizes), seed=0))


def test_experts_are_refused_rather_than_left_floating_in_silence():
    mlp = {"kind": "moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    attention = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    values = {"family": "mixtral", "vocab_size": 20, "hidden_size": 16, "max_position_embeddings": 8,
              "decoder": {"num_hidden_layers": 1, "attention": attention, "mlp": mlp}}  # fmt: skip
    with pytest.raises(ConfigError, match="experts are stacked"):
        quantizable(build_model(ModelConfig.parse(values), seed=0))


def test_packed_shape_that_contradicts_the_configuration(tmp_path):
    from safetensors.torch import load_file, save_file

    model = write_model(tmp_path / "model", model_config())
    quantize(QuantizeConfig(model=model, output=tmp_path / "int8"))
    (tmp_path / "int8" / "lineage.json").unlink()
    file = tmp_path / "int8" / "model.safetensors"
    state = load_file(file)
    state["model.layers.0.mlp.up_proj.weight_shape"] += torch.tensor([0, 1])
    save_file(state, file)
    with pytest.raises(CheckpointError, match=r"up_proj.weight is \[50, 31\], not \[50, 30\]"):
        load_pretrained(tmp_path / "int8")
