"""Checkpoints of every quantized format load to the numbers that their own tools decode, on their grids or off them."""

import json

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.families import family_named
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.models.slots import AttentionConfig, MLPConfig
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.quantized import QuantizedLinear, quantize_groups

NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def model_config(**changes):
    return ModelConfig(
        vocab_size=40, hidden_size=32, max_position_embeddings=64, tie_word_embeddings=False,
        decoder=StackConfig(
            num_hidden_layers=2, mlp=MLPConfig(intermediate_size=64),
            attention=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8),
        ),
    ).model_copy(update=changes)  # fmt: skip


def logits(model, ids):
    with torch.no_grad():
        context = PackedContext(torch.tensor([0, len(ids)], dtype=torch.int32))
        return model.logits(model(ids, torch.arange(len(ids)), context))


def write(folder, pack, config, *, chosen="_proj.weight", family=None, head=False):
    """A model with every chosen matrix replaced by what `pack` makes of it; returns what these stand for."""
    model = build_model(family or model_config(), seed=0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    save_pretrained(model, folder)
    state, expected = load_file(folder / "model.safetensors"), {}
    for name in list(state):
        if name.endswith(chosen) or (head and name == "lm_head.weight"):
            module = name.removesuffix(".weight")
            tensors, expected[name] = pack(state.pop(name))
            state |= {f"{module}.{part}": t.contiguous() for part, t in tensors.items()}
    save_file(state, folder / "model.safetensors")
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(hf | ({"quantization_config": config} if config else {})))
    return model, expected


def check(folder, model, expected, *, kept, exact=True):
    """Loaded both ways, the folder is the model with the expected weights."""
    plain = load_pretrained(folder, keep_quantized=False)
    assert not any(isinstance(m, QuantizedLinear) for m in plain.modules())
    save_pretrained(plain, folder / "decoded")
    decoded = load_file(folder / "decoded" / "model.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(decoded[name], weight, atol=0 if exact else 1e-6, rtol=0 if exact else 1e-5)
    loaded = load_pretrained(folder)
    assert sum(isinstance(m, QuantizedLinear) for m in loaded.modules()) == kept
    ids = torch.arange(30)
    torch.testing.assert_close(logits(loaded, ids), logits(plain, ids), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(loaded, ids), logits(model, ids), atol=1e-4)
    return loaded


def compressed(form, weights, **more):
    """Pack and describe as compressed-tensors itself does."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    codec = BaseCompressor.get_value_from_registry(form)

    def pack(weight):
        groups = {"group": weights.get("group_size")}.get(weights["strategy"], weight.shape[1])
        if weights["strategy"] == "block":
            rows, columns = weights["block_structure"]
            blocks = weight.view(weight.shape[0] // rows, rows, -1, columns)
            scale = blocks.abs().amax((1, 3)) / 448
        else:
            by = weight.view(1, 1, -1) if weights["strategy"] == "tensor" else weight.view(len(weight), -1, groups)
            limit = 448 if weights["type"] == "float" else (2 ** weights["num_bits"] - 1) / 2
            scale = (by.amax(-1) - by.amin(-1)) / 2 / limit if not weights["symmetric"] else by.abs().amax(-1) / limit
        state = {"weight": weight, "weight_scale": scale}
        if not weights["symmetric"]:
            low = -(2 ** (weights["num_bits"] - 1))
            state["weight_zero_point"] = (low - by.amin(-1) / scale).round().clamp(low, -low - 1).to(torch.int8)
        tensors = codec.compress(state, scheme)
        return tensors, codec.decompress(tensors, scheme)["weight"].to(weight.dtype)

    group = {"targets": ["Linear"], "weights": weights, **more}
    return pack, {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None,
    }  # fmt: skip


def ints(bits, symmetric, strategy, group_size=None):
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": group_size,
            "dynamic": False}  # fmt: skip


FLOATS = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
TOKENS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


@pytest.mark.parametrize(
    ("form", "weights", "more", "kept"),
    [
        ("pack-quantized", ints(8, True, "channel"), {}, 14),
        ("pack-quantized", ints(8, True, "group", 16), {}, 14),
        ("pack-quantized", ints(8, False, "group", 16), {}, 14),
        ("pack-quantized", ints(4, True, "group", 16), {}, 14),
        ("pack-quantized", ints(4, True, "channel"), {}, 14),
        ("pack-quantized", ints(4, False, "group", 16), {}, 14),
        ("pack-quantized", ints(4, False, "channel"), {}, 14),
        ("int-quantized", ints(8, True, "channel"), {"input_activations": TOKENS}, 14),
        ("int-quantized", ints(8, False, "channel"), {"input_activations": TOKENS}, 14),
        ("int-quantized", ints(8, True, "tensor"), {"input_activations": TOKENS}, 14),
        ("float-quantized", FLOATS | {"strategy": "channel"}, {}, 0),
        ("float-quantized", FLOATS | {"strategy": "tensor"}, {}, 0),
        ("float-quantized", FLOATS | {"strategy": "block", "block_structure": [16, 16]}, {}, 0),
    ],
)
def test_compressed_tensors(tmp_path, form, weights, more, kept):
    pack, config = compressed(form, weights, **more)
    model, expected = write(tmp_path, pack, config)
    loaded = check(tmp_path, model, expected, kept=kept)
    # transformers 5.23 expects zero points unpacked, which compressed-tensors packs.
    if weights["strategy"] not in ("tensor", "block") and not more and weights["symmetric"]:
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        ids = torch.arange(30)
        with torch.no_grad():
            torch.testing.assert_close(logits(loaded, ids), theirs(ids[None]).logits[0], atol=1e-4, rtol=1e-4)


def test_blocks_described_as_text(tmp_path):
    """As earlier versions of compressed-tensors wrote them."""
    weights = FLOATS | {"strategy": "block", "block_structure": [16, 8]}
    pack, config = compressed("float-quantized", weights)
    config["config_groups"]["group_0"]["weights"] = weights | {"block_structure": "16x8"}
    model, expected = write(tmp_path, pack, config)
    check(tmp_path, model, expected, kept=0, exact=False)


def gptq(bits, group_size, *, offset, order=False, symmetric=False):
    """GPTQ's layout, number by number."""

    def pack(weight):
        out, columns = weight.shape
        group = torch.arange(columns) // group_size
        group = group if not order else group[torch.randperm(columns, generator=torch.Generator().manual_seed(1))]
        generator = torch.Generator().manual_seed(2)
        zero = torch.randint(0, 2**bits, (out, columns // group_size), generator=generator)
        zero = zero.fill_(2 ** (bits - 1)) if symmetric else zero
        scale = torch.rand(zero.shape, generator=generator) / 2 ** (bits + 1)
        values = (weight / scale[:, group] + zero[:, group]).round().clamp(0, 2**bits - 1).long()
        per = 32 // bits
        qweight, qzeros = torch.zeros(columns // per, out).long(), torch.zeros(zero.shape[1], out // per).long()
        for i in range(columns):
            qweight[i // per] |= values[:, i] << bits * (i % per)
        for i in range(out):
            qzeros[:, i // per] |= ((zero[i] - offset) % 2**bits) << bits * (i % per)
        words = {"qweight": qweight, "qzeros": qzeros, "g_idx": group}
        tensors = {name: signed(t) for name, t in words.items()} | {"scales": scale.T}
        return tensors, (values - zero[:, group]) * scale[:, group]

    return pack


def signed(words):
    """Words of 32 bits as int32."""
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
def test_gptq(tmp_path, bits, layout):
    config = {"quant_method": "gptq", "bits": bits, "group_size": 16, "desc_act": False, "checkpoint_format": layout}
    model, expected = write(tmp_path, gptq(bits, 16, offset=int(layout == "gptq")), config)
    loaded = check(tmp_path, model, expected, kept=14)
    assert loaded.decoder.layers[0].self_attn.q_proj.quantized_weight().group_size == 16


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_with_reordered_columns_is_decoded(tmp_path, bits):
    config = {"quant_method": "gptq", "bits": bits, "group_size": 16, "desc_act": True}
    model, expected = write(tmp_path, gptq(bits, 16, offset=1, order=True), config)
    check(tmp_path, model, expected, kept=0)


def test_a_description_beside_the_configuration(tmp_path):
    """As AutoGPTQ left it, before `config.json` had a place for it."""
    model, expected = write(tmp_path, gptq(4, 16, offset=1), None)
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 16, "desc_act": False}))
    check(tmp_path, model, expected, kept=14)


def awq(weight):
    """AWQ's layout for matrix products, number by number."""
    grid = quantize_groups(weight, 4, 16, symmetric=False)
    order, out = (0, 2, 4, 6, 1, 3, 5, 7), len(weight)
    qweight, qzeros = torch.zeros(weight.shape[1], out // 8).long(), torch.zeros(grid.scale.shape[1], out // 8).long()
    for word in range(out // 8):
        for nibble, column in enumerate(order):
            qweight[:, word] |= grid.values[8 * word + column].long() << 4 * nibble
            qzeros[:, word] |= grid.zero[8 * word + column].long() << 4 * nibble
    return {"qweight": signed(qweight), "qzeros": signed(qzeros), "scales": grid.scale.T}, grid.dequantized()


def test_awq(tmp_path):
    config = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
    model, expected = write(tmp_path, awq, config)
    check(tmp_path, model, expected, kept=14)


def nf4(nested):
    """bitsandbytes' layout with its table of numbers."""

    def pack(weight):
        blocks = weight.reshape(-1, 64)
        largest, table = blocks.abs().amax(1), torch.tensor(NF4)
        index = (blocks / largest[:, None]).flatten()[:, None].sub(table).abs().argmin(1)
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
        tensors = {"weight.quant_map": table}
        if nested:
            levels, offset = torch.linspace(-1, 1, 256), float(largest.mean())
            parts = (largest - offset).split(4)
            top = torch.stack([p.abs().amax() for p in parts])
            share = torch.cat([p / t for p, t in zip(parts, top, strict=True)])
            code = share[:, None].sub(levels).abs().argmin(1).to(torch.uint8)
            largest = levels[code.long()] * top.repeat_interleave(4)[: len(code)] + offset
            tensors |= {"weight.absmax": code, "weight.nested_absmax": top, "weight.nested_quant_map": levels}
            state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": offset}
        else:
            tensors["weight.absmax"] = largest
        text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        packed = (index[::2] << 4 | index[1::2]).to(torch.uint8)[:, None]
        tensors |= {"weight": packed, "weight.quant_state.bitsandbytes__nf4": text}
        return tensors, (table[index].view(-1, 64) * largest[:, None]).view(weight.shape)

    return pack


@pytest.mark.parametrize("nested", [False, True])
def test_nf4(tmp_path, nested):
    model, expected = write(tmp_path, nf4(nested), {"quant_method": "bitsandbytes", "load_in_4bit": True})
    check(tmp_path, model, expected, kept=0, exact=False)


def int8_rows(weight):
    largest = weight.abs().amax(1)
    values = (weight * (127 / largest)[:, None]).round().to(torch.int8)
    tensors = {"weight": values, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, values * (largest / 127)[:, None]


def test_llm_int8(tmp_path):
    model, expected = write(tmp_path, int8_rows, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    check(tmp_path, model, expected, kept=14, exact=False)


def fp8_blocks(weight):
    blocks = weight.view(weight.shape[0] // 16, 16, -1, 8)
    scale = blocks.abs().amax((1, 3)) / 448
    values = (blocks / scale[:, None, :, None]).view(weight.shape).to(torch.float8_e4m3fn)
    expected = (values.float().view(blocks.shape) * scale[:, None, :, None]).view(weight.shape)
    return {"weight": values, "weight_scale_inv": scale}, expected


def test_fp8_blocks_as_deepseek_stores_them(tmp_path):
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 8]}
    model, expected = write(tmp_path, fp8_blocks, config)
    check(tmp_path, model, expected, kept=0)
    narrow = load_pretrained(tmp_path, dtype=torch.bfloat16)
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(narrow.decoder.layers[1].mlp.down_proj.weight, expected[name].bfloat16())  # rounded once


def small(family):
    """A preset of the family with few and small layers."""
    preset = next(iter(family_named(family).presets.values()))
    attention = preset.decoder.attention.model_copy(
        update={"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    )
    mlp = preset.decoder.mlp.model_copy(update={"intermediate_size": 64})
    decoder = preset.decoder.model_copy(update={"num_hidden_layers": 1, "attention": attention, "mlp": mlp})
    ids = {"bos_token_id": 0, "eos_token_ids": (0,), "pad_token_id": None}
    sizes = {"vocab_size": 40, "hidden_size": 32, "max_position_embeddings": 64, "decoder": decoder}
    return preset.model_copy(update=sizes | ids)


@pytest.mark.parametrize(
    ("family", "chosen"),
    [("phi3", "_proj.weight"), ("gpt_neox", "query_key_value.weight"), ("gpt2", ("c_attn.weight", "c_fc.weight"))],
)
def test_fused_and_transposed_matrices_of_families(tmp_path, family, chosen):
    """One matrix on disk is several of ours: each takes its rows of the grid. GPTQ stores GPT-2's as linear maps."""

    def pack(weight):
        return gptq(4, 16, offset=1)(weight.T if family == "gpt2" else weight)

    config = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    model, expected = write(tmp_path, pack, config, chosen=chosen, family=small(family))
    if family == "gpt2":
        expected = {name: weight.T for name, weight in expected.items()}
    check(tmp_path, model, expected, kept={"phi3": 7, "gpt_neox": 3, "gpt2": 4}[family])


def test_experts_are_decoded(tmp_path):
    values = {"family": "mixtral", "vocab_size": 40, "hidden_size": 32, "max_position_embeddings": 64,
              "decoder": {"num_hidden_layers": 1,
                          "attention": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
                          "mlp": {"kind": "moe", "num_experts": 2, "num_experts_per_tok": 1,
                                  "moe_intermediate_size": 16}}}  # fmt: skip
    config = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}
    experts = ("w1.weight", "w2.weight", "w3.weight", "_proj.weight")
    model, expected = write(tmp_path, awq, config, chosen=experts, family=ModelConfig.parse(values))
    assert any("experts" in name for name in expected)
    loaded = check(tmp_path, model, expected, kept=4)
    assert loaded.decoder.layers[0].mlp.experts.up_proj.is_floating_point()


def test_a_quantized_head_is_read(tmp_path):
    model, expected = write(tmp_path, awq, {"quant_method": "awq", "bits": 4, "group_size": 16}, head=True)
    loaded = check(tmp_path, model, expected, kept=15)
    assert isinstance(loaded.lm_head, QuantizedLinear)


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (8, True), (4, False), (8, False)])
def test_saved_as_compressed_tensors(tmp_path, bits, symmetric):
    """GPTQ in, compressed-tensors out: the same integers, which transformers reads where they have no zero points."""
    (tmp_path / "gptq").mkdir()
    config = {"quant_method": "gptq", "bits": bits, "group_size": 16}
    write(tmp_path / "gptq", gptq(bits, 16, offset=1, symmetric=symmetric), config, family=small("phi3"))
    loaded = load_pretrained(tmp_path / "gptq")
    save_pretrained(loaded, tmp_path / "saved")
    again = load_pretrained(tmp_path / "saved")
    assert again.decoder.layers[0].mlp.up_proj.quantized_weight().bits == bits
    assert all(torch.equal(again.state_dict()[n], t) for n, t in loaded.state_dict().items())
    if symmetric:
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
        ids = torch.arange(30)
        with torch.no_grad():
            torch.testing.assert_close(logits(loaded, ids), theirs(ids[None]).logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "quark"}, "quantization_config is not supported .quant_method 'quark'"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "GPTQ's layout 'marlin' is not read"),
        ({"quant_method": "awq", "version": "gemv"}, "AWQ's version 'gemv'"),
        ({"quant_method": "compressed-tensors", "config_groups": []}, "config_groups .* cannot be read"),
        (compressed("pack-quantized", ints(3, True, "channel"))[1], "3 bits"),
        (compressed("int-quantized", ints(8, True, "block") | {"block_structure": [16, 16]})[1], "scales by block"),
        ({"quant_method": "compressed-tensors", "config_groups": {}, "sparsity_config": {"format": "marlin-24"}},
         "sparsity_config is not supported"),
        ({"quant_method": "fp8", "weight_block_size": [0, 1]}, "not a pair of positive numbers"),
        ("int8", "quantization_config is not a mapping"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(tmp_path, config, message):
    write(tmp_path, lambda weight: ({"weight": weight}, weight), config)
    with pytest.raises(ConfigError, match=message):
        load_pretrained(tmp_path)


def test_damaged_files_are_named(tmp_path):
    write(tmp_path, gptq(4, 16, offset=1), {"quant_method": "gptq", "bits": 4, "group_size": 16})
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    module = "model.layers.0.mlp.up_proj"
    for damage, message in (
        ({f"{module}.scales": whole[f"{module}.scales"].new_ones(3, 64)}, r"up_proj has 3 scales for rows of 32"),
        ({f"{module}.g_idx": torch.arange(32, dtype=torch.int32)}, r"up_proj.g_idx does not fit"),
        ({f"{module}.qzeros": None}, r"lacks model.layers.0.mlp.up_proj.qzeros"),
        (
            {f"{module}.qweight": whole[f"{module}.qweight"][:-1].clone()},
            r"up_proj.weight is \[64, 24\], not \[64, 32\]",
        ),
    ):
        save_file({n: t for n, t in (whole | damage).items() if t is not None}, file)
        with pytest.raises(CheckpointError, match=message):
            load_pretrained(tmp_path)
