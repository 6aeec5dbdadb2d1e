"""Folders that claim absurd things: one named error, soon, and nothing built or loaded by them."""

import json
import os
import struct
import sys
import time
import warnings
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmworks.cli.main import main
from lmworks.core.errors import CheckpointError, ConfigError, LMWorksError
from lmworks.models.families import family_named
from lmworks.models.hub import load_pretrained, read_config
from lmworks.proofs import reference
from lmworks.proofs.cases import all_cases

CASES = {case.family: case for case in reversed(all_cases())}
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path):
    """A function that makes a tiny model folder of a family, as transformers writes it."""

    def make(family="llama", **config):
        reference.build(CASES[family], 0).save_pretrained(tmp_path / family)
        load_pretrained(tmp_path / family)  # sound, and what torch imports once is imported
        file = tmp_path / family / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
        return tmp_path / family

    return make


def rewrite(folder, change):
    state = load_file(folder / "model.safetensors")
    save_file(change(state) or state, folder / "model.safetensors")


def refused_soon(folder, match):
    """Refused within a second, without a chance to fill memory."""
    start = time.perf_counter()
    with pytest.raises((CheckpointError, ConfigError), match=match):
        load_pretrained(folder)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("count", [2000, 10**9])
@pytest.mark.parametrize(
    ("family", "key"),
    [("llama", "num_hidden_layers"), ("gpt2", "n_layer"), ("bert", "num_hidden_layers"), ("t5", "num_layers"),
     ("t5", "num_decoder_layers"), ("bart", "encoder_layers"), ("bart", "decoder_layers"), ("xlnet", "n_layer"),
     ("mixtral", "num_hidden_layers"), ("deepseek_v3", "num_hidden_layers"), ("albert", "num_hidden_groups")],
)  # fmt: skip
def test_layers_that_are_not_there(folder, family, key, count):
    further = {"num_hidden_layers": count} if family == "albert" else {}
    refused_soon(folder(family, **{key: count}, **further), r"announces 2,000 different layers|more than 10,000|10000")


def test_a_layer_that_is_not_there_is_told(folder):
    path = folder()
    rewrite(path, lambda s: {n: t for n, t in s.items() if ".layers.0." not in n})
    refused_soon(path, "none of layer 0; it holds ")


@pytest.mark.parametrize(
    ("family", "key", "value", "message"),
    [("llama", "hidden_size", 10**9, r"embed_tokens.weight is \[\d+, \d+\], not \[\d+, 1000000000\]"),
     ("llama", "hidden_size", 10**18, "tensors beyond any memory"),
     ("llama", "hidden_size", 10**30, "tensors beyond any memory"),
     ("llama", "hidden_size", -32, "hidden_size = -32 is not a positive integer"),
     ("llama", "hidden_size", 32.5, "hidden_size = 32.5 is not a positive integer"),
     ("llama", "intermediate_size", "48", "intermediate_size = '48' is not a positive integer"),
     ("llama", "num_key_value_heads", 0, "num_key_value_heads = 0 is not a positive integer"),
     ("llama", "head_dim", 10**9, "head_dim = 1000000000: .*65536"),
     ("llama", "vocab_size", 10**9, r"embed_tokens.weight is .*, not \[1000000000, "),
     ("llama", "vocab_size", -1, "vocab_size = -1"),
     ("llama", "rms_norm_eps", float("nan"), "eps = nan: .*finite"),
     ("llama", "rms_norm_eps", float("inf"), "eps = inf: .*finite"),
     ("llama", "bos_token_id", -1, r"bos_token_id \(-1,\) is outside the vocabulary"),
     ("llama", "architectures", [["LlamaForCausalLM"]], r"architectures = .* cannot be read"),
     ("llama", "rope_parameters", {"rope_type": ["yarn"], "rope_theta": 1e4}, r"rope_type \['yarn'\] is not supported"),
     ("llama", "dtype", {"a": 1}, "dtype {'a': 1} is not supported. Known: float32"),
     ("gemma3_text", "layer_types", [["full_attention"]], "layer_types = .* cannot be read"),
     ("mixtral", "num_local_experts", 10**9, "num_experts = 1000000000: .*10000"),
     ("mixtral", "num_experts_per_tok", 1000, "num_experts_per_tok 1000 exceeds"),
     ("switch_transformers", "num_experts", 10**9, "num_experts = 1000000000: .*10000"),
     ("bert", "type_vocab_size", 9, r"token_type_embeddings.weight is \[\d+, \d+\], not \[9, "),
     ("t5", "relative_attention_num_buckets", 10**9, r"relative_attention_bias.weight is .*, not \[1000000000, ")],
)  # fmt: skip
def test_impossible_values(folder, family, key, value, message):
    refused_soon(folder(family, **{key: value}), message)


@pytest.mark.parametrize("family", CASES)
def test_no_value_of_any_key_is_more_than_an_error(family):
    """Whatever stands in a configuration, reading it ends with a configuration or a named error, and soon."""
    case = CASES[family]
    hf = {"model_type": family, "architectures": [case.architecture], **case.config}
    for key in [*hf, "id2label", "rope_scaling", "rope_parameters", "layer_types"]:
        for value in ([], [[1]], {"a": [1]}, "x", 2.5, True, 0, -1, 10**9, 10**30, float("nan")):
            start = time.perf_counter()
            with warnings.catch_warnings(action="ignore"), suppress(LMWorksError):
                family_named(family).config_from_hf({**hf, key: value})
            assert time.perf_counter() - start < 2, (key, value)


@pytest.mark.parametrize("architectures", [["LamaForCausalLM"], "LamaForCausalLM"])
def test_an_unknown_architecture_has_a_nearest(folder, architectures):
    path = folder(model_type=None, architectures=architectures)
    refused_soon(path, r"no known architecture .*did you mean 'LlamaForCausalLM'")
    refused_soon(folder(model_type="lama"), r"model_type 'lama' is not supported \(did you mean 'llama'\?\)")
    refused_soon(folder(model_type=None, architectures=5), "no known architecture")


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.complex64])
def test_weights_of_a_type_that_is_none(folder, dtype):
    path = folder()
    rewrite(path, lambda s: s.update({QUERY: s[QUERY].to(dtype)}))
    with warnings.catch_warnings(action="ignore"):
        kind = str(dtype).removeprefix("torch.")
        refused_soon(path, rf"holds model\.layers\.0\.self_attn\.q_proj\.weight as {kind}, which is no type of")


def test_wider_weights_are_rounded_as_the_configuration_says(folder):
    path = folder()
    wanted = load_pretrained(path).state_dict()
    rewrite(path, lambda s: {n: t.double() for n, t in s.items()})
    model = load_pretrained(path)
    assert model.dtype == torch.float32
    assert all(torch.equal(t, wanted[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "experts", "parts"),
    [("mixtral", "model.layers.{}.block_sparse_moe.experts.", ("w1", "w3", "w2")),
     ("qwen3_moe", "model.layers.{}.mlp.experts.", ("gate_proj", "up_proj", "down_proj"))],
)  # fmt: skip
def test_experts_spelled_one_way_or_the_other(folder, family, experts, parts):
    """A missing expert is named; each layer may be stacked or not; both at once are too many."""
    path = folder(family)
    state, wanted = load_file(path / "model.safetensors"), load_pretrained(path).state_dict()
    layer = next(i for i in (1, 2, 0) if any(n.startswith(experts.format(i)) for n in state))
    own = experts.format(layer)
    lost = f"{own}1.{parts[2]}.weight"
    rewrite(path, lambda s: {n: t for n, t in s.items() if n != lost})
    refused_soon(path, rf"missing: {lost}\. ")
    count = sum(n.startswith(own) for n in state) // 3
    gate, up, down = (torch.stack([state[f"{own}{e}.{part}.weight"] for e in range(count)]) for part in parts)
    stacked = {f"{own}gate_up_proj": torch.cat([gate, up], 1), f"{own}down_proj": down}
    save_file({**state, **stacked}, path / "model.safetensors")
    refused_soon(path, rf"unexpected: {own}down_proj, {own}gate_up_proj\. ")
    kept = {n: t for n, t in state.items() if not n.startswith(own)}
    save_file({**kept, **stacked}, path / "model.safetensors")
    assert all(torch.equal(t, wanted[n]) for n, t in load_pretrained(path).state_dict().items())


def test_an_encoder_decoder_that_lacks_its_crossing(folder):
    path = folder("t5")
    lost = "decoder.block.1.layer.1.EncDecAttention.q.weight"
    rewrite(path, lambda s: {n: t for n, t in s.items() if n != lost})
    refused_soon(path, rf"missing: {lost}\. ")


def test_more_than_any_memory_is_estimated_before_anything_is_read(folder):
    """A file of zeros that takes no disk: 256 GiB."""
    path = folder()
    header = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [2**20, 2**16], "data_offsets": [0, 2**38]}}
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 2**38)
    refused_soon(path, r"holds 256\.0 GiB, more than this machine has room for|announces \d+ different layers")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot read"), (b'{"model_type": "\xe9"}', "utf-8"), (b"\xff\xfe{\x00", "utf-8"),
     (b"[" * 10**6, "recursion"), (b'{"hidden_size": %s}' % (b"9" * 5000), "digits")],
    ids=["empty", "Latin-1", "UTF-16", "nested", "long number"],
)  # fmt: skip
def test_configurations_that_are_no_json(folder, content, message):
    path = folder()
    (path / "config.json").write_bytes(content)
    refused_soon(path, rf"cannot read .*config\.json: .*{message}.*Restore the file|cannot read .*Restore the file")
    with pytest.raises(CheckpointError, match=message):
        read_config(path)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("target", ["itself", "nowhere", "folder"])
def test_links_that_lead_nowhere(folder, file, target):
    path = folder()
    (path / file).unlink()
    if target == "folder":
        (path / file).mkdir()
    else:
        (path / file).symlink_to(file if target == "itself" else "nowhere")
    refused_soon(path, r"cannot read .*config\.json" if file == "config.json" else "is a broken link or no file")


def test_names_of_shards(folder):
    path = folder()
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").rename(path / "a.safetensors")
    for name in ("a" * 5000, "ü" * 200):
        index = dict.fromkeys(state, "a.safetensors") | {QUERY: name}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        refused_soon(path, "not a plain file name")
    os.link(path / "a.safetensors", path / "b.safetensors")
    index = dict.fromkeys(state, "a.safetensors") | {QUERY: "b.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    refused_soon(path, r"twice, in a\.safetensors and b\.safetensors")


def test_which_model_is_meant(folder):
    path = folder()
    (path / "other.gguf").write_bytes(b"GGUF")
    load_pretrained(path)  # the folder's own
    for file in ("model.safetensors", "config.json"):
        refused_soon(path / file, "is one file, not a whole model")
        (path / file).rename(path / f"{file}.old")
    (path / "another.gguf").write_bytes(b"GGUF")
    refused_soon(path, r"holds 2 models: another\.gguf, other\.gguf\. Give the path of one")


@pytest.mark.parametrize("command", ["model describe", "generate", "chat"])
def test_the_command_line_ends_with_one_line_and_status_2(folder, command, monkeypatch, capsys):
    path = folder(num_hidden_layers=10**9)
    (path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}})
    )
    monkeypatch.setattr(
        sys, "argv", ["lmworks", *command.split(), str(path), *(["a"] if command == "generate" else [])]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "Error: config.json: num_hidden_layers = 1000000000 is more than 10,000. Correct it.\n"
