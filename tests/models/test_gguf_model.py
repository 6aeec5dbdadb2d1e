"""A LLaMA written as llama.cpp's converter writes it loads to the same model."""

import contextlib
import warnings

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.hub import load_pretrained, read_config, read_gguf, save_pretrained
from lmworks.models.position_slots import RotaryPositions
from lmworks.models.slots import AttentionConfig, MLPConfig
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.quantized import QuantizedEmbedding, QuantizedLinear
from lmworks.nn.rope import inverse_frequencies, llama3_scaled

FACTOR = 32.0


def config(**changes):
    return ModelConfig(
        vocab_size=40, hidden_size=32, max_position_embeddings=128, bos_token_id=1, eos_token_ids=(2, 5),
        decoder=StackConfig(
            num_hidden_layers=2, mlp=MLPConfig(intermediate_size=48),
            attention=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16),
        ),
    ).model_copy(update=changes)  # fmt: skip


def interleave(weight, heads):
    """llama.cpp's conversion of query and key rows, as its script does it."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write(file, model, quantization=gguf.GGMLQuantizationType.F32, **overrides):
    c, attention = model.config, model.config.decoder.attention
    writer = gguf.GGUFWriter(file, overrides.get("architecture", "llama"))
    writer.add_block_count(overrides.get("blocks", c.decoder.num_hidden_layers))
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.decoder.mlp.intermediate_size)
    writer.add_head_count(attention.num_attention_heads)
    writer.add_head_count_kv(attention.num_key_value_heads)
    writer.add_key_length(overrides.get("head_dim", attention.head_dim))
    writer.add_value_length(overrides.get("head_dim", attention.head_dim))
    writer.add_rope_dimension_count(overrides.get("rotated", attention.head_dim))
    for key, value in overrides.get("extra", {}).items():
        writer.add_uint32(key, value)
    writer.add_rope_freq_base(c.positions.rope_theta)
    writer.add_layer_norm_rms_eps(c.decoder.norm.eps)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)
    if "scaling" in overrides:
        writer.add_rope_scaling_type(overrides["scaling"])
    if "rope_factors" in overrides:
        writer.add_tensor("rope_freqs.weight", overrides["rope_factors"].numpy())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.decoder.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        array = tensor.numpy()
        for projection, heads in (("q_proj", attention.num_attention_heads), ("k_proj", attention.num_key_value_heads)):
            if projection in name:
                array = interleave(array, heads)
        theirs = name.replace("decoder.", "model.").replace("embed_tokens", "model.embed_tokens")
        kind = quantization if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(array, kind)
        writer.add_tensor(names.get_name(theirs, try_suffixes=(".weight", ".bias")), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [True, False])
def test_weights_and_configuration_come_back(tmp_path, tied):
    model = build_model(config(tie_word_embeddings=tied), seed=0)
    write(tmp_path / "m.gguf", model)
    loaded = load_pretrained(tmp_path / "m.gguf")
    assert loaded.config == model.config
    assert all(torch.equal(loaded.state_dict()[n], t) for n, t in model.state_dict().items())
    assert read_config(tmp_path) == loaded.config  # a folder with one GGUF file stands for it
    assert read_gguf(tmp_path / "m.gguf").metadata["llama.block_count"] == 2


def test_quantized_weights_are_decoded(tmp_path):
    wider = config().decoder.model_copy(update={"mlp": MLPConfig(intermediate_size=64)})  # blocks hold 32 weights
    model = build_model(config(decoder=wider), seed=0)
    write(tmp_path / "m.gguf", model, gguf.GGMLQuantizationType.Q8_0)
    loaded = load_pretrained(tmp_path / "m.gguf", dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name].float(), tensor, atol=1e-3, rtol=0.01)


def logits(model, ids):
    with torch.no_grad():
        context = PackedContext(torch.tensor([0, len(ids)], dtype=torch.int32))
        return model.logits(model(ids, torch.arange(len(ids)), context))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("kind", "bits"), [("Q8_0", 8), ("Q4_0", 4), ("Q4_1", 4), ("Q5_0", 8), ("Q5_1", 8)])
def test_blocks_may_stay_integers(tmp_path, kind, bits, tied):
    """Also where rows of queries and keys change places, and where the embedding is the head."""
    wider = config().decoder.model_copy(update={"mlp": MLPConfig(intermediate_size=64)})
    model = build_model(config(decoder=wider, tie_word_embeddings=tied), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
        model.decoder.layers[0].self_attn.q_proj.weight[3, :32] = 0.25  # a block without any range
        model.decoder.layers[0].self_attn.q_proj.weight[5, :32] = 0
    write(tmp_path / "m.gguf", model, gguf.GGMLQuantizationType[kind])
    kept = load_pretrained(tmp_path / "m.gguf", keep_quantized=True)
    plain = load_pretrained(tmp_path / "m.gguf")
    linears = [m for m in kept.modules() if isinstance(m, QuantizedLinear)]
    assert len(linears) == 15
    assert {(m.quantized_weight().bits, m.quantized_weight().group_size) for m in linears} == {(bits, 32)}
    assert isinstance(kept.embed_tokens, QuantizedEmbedding)
    assert (kept.lm_head.weight is kept.embed_tokens.weight) == tied
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            found = kept.get_submodule(name).dequantized()
            torch.testing.assert_close(found, module.weight.detach(), atol=1e-6, rtol=1e-5)
    ids = torch.arange(30)
    torch.testing.assert_close(logits(kept, ids), logits(plain, ids), atol=1e-4, rtol=1e-4)
    narrow = kept.to(torch.bfloat16)
    assert logits(narrow, ids).dtype == torch.bfloat16
    assert (narrow.lm_head.weight is narrow.embed_tokens.weight) == tied
    assert narrow.dtype == torch.bfloat16


def test_quantized_embeddings_are_not_saved_in_a_folder(tmp_path):
    wider = config().decoder.model_copy(update={"mlp": MLPConfig(intermediate_size=64)})
    write(tmp_path / "m.gguf", build_model(config(decoder=wider), seed=0), gguf.GGMLQuantizationType.Q4_0)
    with pytest.raises(ConfigError, match="stores no quantized embedding"):
        save_pretrained(load_pretrained(tmp_path / "m.gguf", keep_quantized=True), tmp_path / "out")


def test_biases_are_found_and_permuted(tmp_path):
    biased = config().decoder.attention.model_copy(update={"qkv_bias": True, "o_bias": True})
    model = build_model(config(decoder=config().decoder.model_copy(update={"attention": biased})), seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    write(tmp_path / "m.gguf", model)
    loaded = load_pretrained(tmp_path / "m.gguf")
    assert all(torch.equal(loaded.state_dict()[n], t) for n, t in model.state_dict().items())


def test_llama3_scaling_is_recovered(tmp_path):
    speeds = inverse_frequencies(16, 5e5)
    factors = speeds / llama3_scaled(speeds, FACTOR, 1.0, 4.0, 8192)
    model = build_model(config(positions=RotaryPositions(rope_theta=5e5)), seed=0)
    write(tmp_path / "m.gguf", model, rope_factors=factors)
    scaling = read_config(tmp_path / "m.gguf").positions.rope_scaling
    assert (scaling.rope_type, scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor) == (
        "llama3", FACTOR, 1.0, 4.0
    )  # fmt: skip
    write(tmp_path / "odd.gguf", model, rope_factors=factors.flip(0))
    with pytest.raises(ConfigError, match="not Llama 3's scaling"):
        read_config(tmp_path / "odd.gguf")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"architecture": "mamba"}, "general.architecture is 'mamba'; read from GGUF are llama, "),
        ({"rotated": 8}, "rope.dimension_count = 8 is not supported, only 16"),
        ({"scaling": gguf.RopeScalingType.LONGROPE}, "rope.scaling.type = 'longrope'"),
        ({"scaling": gguf.RopeScalingType.LINEAR}, "linear RoPE scaling lacks factor"),
        ({"extra": {"llama.expert_count": 8}}, "llama.expert_count = 8 is not supported, only 0"),
        ({"blocks": 2**31}, "2147483648 blocks .* tensors of 2 blocks"),
        ({"head_dim": 2**31, "rotated": 2**31}, "4 heads of 2147483648 coordinates"),
    ],
)
def test_what_is_not_supported_is_an_error(tmp_path, overrides, message):
    write(tmp_path / "m.gguf", build_model(config(), seed=0), **overrides)
    with pytest.raises(ConfigError, match=message):
        load_pretrained(tmp_path / "m.gguf")


def test_values_that_are_not_read_are_named(tmp_path):
    write(tmp_path / "m.gguf", build_model(config(), seed=0), extra={"llama.attention.sinks": 1})
    with pytest.warns(UserWarning, match=r"llama\.attention\.sinks have no effect here"):
        read_config(tmp_path / "m.gguf")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_in_the_header_is_named(tmp_path, data):
    file = tmp_path / "m.gguf"
    if not file.exists():
        write(file, build_model(config(), seed=0))
    whole = file.read_bytes()
    at = data.draw(st.integers(0, whole.index(b"blk.1.attn_norm")))
    junk = data.draw(st.one_of(st.binary(min_size=1, max_size=4), st.just(b"\xff" * 4), st.just(b"\0" * 4)))
    (tmp_path / "bad.gguf").write_bytes(whole[:at] + junk + whole[at + len(junk) :])
    with contextlib.suppress(CheckpointError, ConfigError), warnings.catch_warnings(action="ignore"):
        load_pretrained(tmp_path / "bad.gguf")  # damage to a name that nobody reads does no harm


def test_truncation(tmp_path):
    write(tmp_path / "m.gguf", build_model(config(), seed=0))
    (tmp_path / "m.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_pretrained(tmp_path / "m.gguf")
