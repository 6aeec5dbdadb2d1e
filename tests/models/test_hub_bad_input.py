"""What a damaged, foreign or contradictory model folder tells its user."""

import json
import resource
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lmworks.core.errors import CheckpointError, ConfigError, DiskFullError
from lmworks.core.lineage import write_artifact
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.hub import load_pretrained, read_config, safetensors_io, save_pretrained, tensor_source
from lmworks.models.slots import AttentionConfig, MLPConfig

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=32, max_position_embeddings=64, eos_token_ids=(0, 2),
    decoder=StackConfig(
        num_hidden_layers=2, mlp=MLPConfig(intermediate_size=48),
        attention=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8),
    ),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    save_pretrained(build_model(CONFIG, seed=0), tmp_path / "model")
    return tmp_path / "model"


def edit(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def rewrite(folder, change):
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)


def test_all_differences_are_listed(folder):
    def change(state):
        del state["model.norm.weight"]
        state["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)
        state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(47, 32)

    rewrite(folder, change)
    with pytest.raises(CheckpointError) as error:
        load_pretrained(folder)
    text = str(error.value)
    assert "missing: model.norm.weight" in text
    assert "unexpected: model.layers.7.mlp.up_proj.weight" in text
    assert "model.layers.0.mlp.up_proj.weight is [47, 32], not [48, 32]" in text


def test_vocabulary_that_contradicts_the_embedding(folder):
    edit(folder / "config.json", vocab_size=60)
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight is \[61, 32\], not \[60, 32\]"):
        load_pretrained(folder)


def test_untied_config_without_a_head(folder):
    edit(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"missing: lm_head.weight.*tie_word_embeddings"):
        load_pretrained(folder)


def test_tied_config_with_a_stored_head(folder):
    rewrite(folder, lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"].clone()}))
    load_pretrained(folder)  # a redundant copy is harmless
    rewrite(folder, lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"] + 1}))
    with pytest.raises(CheckpointError, match=r"differs from model\.embed_tokens\.weight, but config\.json ties"):
        load_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_truncated_weights(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        load_pretrained(folder)


def raw(header, data=b"", length=None):
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        raw({"a": entry([1], 0, 4)}, bytes(4), length=10**6),
        raw({"a": entry([1], 0, 4)}, bytes(4), length=2**63),
        raw(b"{nope"),
        raw(b"\xff\xfe{}"),
        raw(b"[]"),
        raw({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        raw({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
        raw({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
        raw({"a": entry([4], 0, 16)}, bytes(8)),
        raw({"a": entry([1], 4, 0)}, bytes(8)),
        raw({"a": entry([3], 0, 4)}, bytes(4)),
        raw({"a": entry([2**40, 2**40], 0, 4)}, bytes(4)),
        raw({"a": entry([1], 0, 4, "Q4")}, bytes(4)),
        raw(b'{"a": %b, "a": %b}' % ((json.dumps(entry([1], 0, 4)).encode(),) * 2), bytes(4)),
    ],
    ids=["header past the end", "absurd header", "no JSON", "no UTF-8", "no object", "overlapping", "same place",
         "gap", "data past the end", "backwards", "shape against extent", "overflow", "unknown type", "name twice"],
)  # fmt: skip
def test_corrupt_headers(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or truncated"):
        load_pretrained(folder)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_truncation_is_named(folder, data):
    file, kept = folder / "model.safetensors", folder / "whole"
    if not kept.exists():
        file.rename(kept)
    whole = kept.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    file.write_bytes(whole[: data.draw(st.one_of(st.integers(0, header), st.integers(0, len(whole) - 1)))])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        load_pretrained(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickles_are_refused(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match=rf"pickles \({name}\).*runs the code.*save_pretrained\(NEW_FOLDER\)"):
        load_pretrained(folder)


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors .*, only model-00001-of-00002\.safetens"):
        load_pretrained(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors and no .*index\.json\."):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../model/secret.safetensors", "plain file name"),
        ("/etc/passwd", "plain file name"),
        ("..", "plain file name"),
        ("sub/a.safetensors", "plain file name"),
        ("..\\secret.safetensors", "plain file name"),
        ("", "lacks the shard"),
        ("b.safetensors", "lacks the shard"),
    ],
)
def test_index_that_leads_elsewhere(folder, name, message):
    (folder / "model.safetensors").rename(folder / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(folder)


@pytest.fixture
def shards(folder):
    """The model in two files."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = {"a.safetensors": dict(list(state.items())[::2]), "b.safetensors": dict(list(state.items())[1::2])}
    for name, half in halves.items():
        save_file(half, folder / name)
    index = {tensor: name for name, half in halves.items() for tensor in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    load_pretrained(folder)
    return folder, index


def test_index_that_misplaces_a_tensor(shards):
    folder, index = shards
    file = folder / "model.safetensors.index.json"
    name = "model.norm.weight"
    other = ({"a.safetensors", "b.safetensors"} - {index[name]}).pop()
    for wrong, message in (
        ({**index, "lm_head.bias": "a.safetensors"}, r"places 'lm_head.bias' in a\.safetensors, which lacks it"),
        ({**index, name: other}, rf"places '{name}' in {other}, which lacks it"),
        ({**index, name: "c.safetensors"}, r"lacks the shard 'c\.safetensors'"),
    ):
        file.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(CheckpointError, match=message):
            load_pretrained(folder)


def test_tensor_in_two_shards(shards):
    folder, index = shards
    other = folder / ({"a.safetensors", "b.safetensors"} - {index["model.norm.weight"]}).pop()
    save_file({**load_file(other), "model.norm.weight": torch.zeros(32)}, other)
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' twice, in a\.safetensors and b\.safetensors"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"weight_map": []}', "{}", '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}']
)
def test_damaged_index(shards, text):
    folder, _ = shards
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        load_pretrained(folder)


def test_weights_changed_after_they_were_made(tmp_path):
    with write_artifact(tmp_path / "model", "model", config={}) as writer:
        save_pretrained(build_model(CONFIG, seed=0), writer.folder)
    load_pretrained(tmp_path / "model")
    rewrite(tmp_path / "model", lambda s: s["model.norm.weight"].add_(1))
    with pytest.raises(CheckpointError, match=r"not the file recorded in lineage.json"):
        load_pretrained(tmp_path / "model")


def test_too_large_for_memory(folder, monkeypatch):
    monkeypatch.setattr(tensor_source, "available_memory", lambda device: 1000)
    with pytest.raises(CheckpointError, match=r"needs 0\.0 GiB as float32"):
        load_pretrained(folder)


@pytest.mark.parametrize("path", ["absent", "absent.gguf"])
def test_no_model_there(tmp_path, path):
    with pytest.raises(CheckpointError, match="there is no model at"):
        load_pretrained(tmp_path / path)


def test_unreadable_configuration(folder):
    for text, message in (("{", "cannot read"), ("[]", "holds a list")):
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_config(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        read_config(folder)


def test_unknown_dtype(folder):
    edit(folder / "config.json", dtype="float8_e4m3fn")
    with pytest.raises(CheckpointError, match="float8_e4m3fn"):
        load_pretrained(folder)


@pytest.mark.parametrize("method", ["quark", None, ["gptq"], {"gptq": 4}])
def test_foreign_quantization(folder, method):
    edit(folder / "config.json", quantization_config={"quant_method": method})
    with pytest.raises(ConfigError, match="quantization_config is not supported"):
        load_pretrained(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors"])
def test_plain_weights_described_as_quantized(folder, method):
    edit(folder / "config.json", quantization_config={"quant_method": method, "config_groups": {}})
    with pytest.raises(CheckpointError, match=f"quantized by {method}, and .* holds none"):
        load_pretrained(folder)


def test_full_disk(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(DiskFullError, match=r"model.safetensors failed: File too large"):
            save_pretrained(build_model(CONFIG, seed=0), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_shards_are_written_and_read(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    model = build_model(CONFIG, seed=0)
    monkeypatch.setattr(safetensors_io, "MAX_SHARD_BYTES", 10_000)
    save_pretrained(model, tmp_path)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    again = load_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(theirs.model.norm.weight, model.decoder.norm.weight)


def test_views_store_only_their_elements(tmp_path):
    buffer = torch.randn(1000, 100)
    safetensors_io.write_safetensors({"a": buffer[:10], "b": buffer[:, 3]}, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * 2000 * 4
    state = load_file(tmp_path / "model.safetensors")
    assert torch.equal(state["a"], buffer[:10])
    assert torch.equal(state["b"], buffer[:, 3])


def test_eos_ids_come_from_the_generation_config(folder):
    assert read_config(folder).eos_token_ids == (0, 2)
    edit(folder / "generation_config.json", eos_token_id=5)
    assert read_config(folder).eos_token_ids == (5,)
