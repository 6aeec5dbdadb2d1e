"""`lmworks model describe` and `model list` as a person asks: folders, files, presets, misspellings."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lmworks.cli.main import cli
from lmworks.cli.model import description, readable_bytes
from lmworks.compress.gguf_export import save_gguf
from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.engine.execution.kv_cache import KVCache
from lmworks.models.accounting import parameters
from lmworks.models.build import build_model
from lmworks.models.families import FAMILIES, family_named
from lmworks.models.families.presets import preset_named, preset_names
from lmworks.models.hub import save_pretrained

HF = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
      "max_position_embeddings": 64, "tie_word_embeddings": True}  # fmt: skip


def ask(*arguments):
    result = CliRunner().invoke(cli, ["model", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def facts(*arguments):
    return json.loads(ask("describe", *arguments, "--json"))


def test_a_folder_a_file_and_its_weights_agree(tmp_path):
    model = build_model(family_named("llama").config_from_hf(HF), seed=0)
    save_pretrained(model, tmp_path / "folder")
    words = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [str(i) for i in range(300)]}
    save_gguf(model, words, tmp_path / "file.gguf", dtype="f32")
    folder, file = (facts(str(tmp_path / name)) for name in ("folder", "file.gguf"))
    count = sum(p.numel() for p in model.parameters())
    assert folder["parameters"]["total"] == file["parameters"]["total"] == count
    assert folder["weight_bytes"]["float32"] == 4 * count
    assert folder["layers"] == file["layers"]


FIRST = {family: preset for preset, family in reversed(preset_names().items())}


@pytest.mark.parametrize("preset", FIRST.values())
def test_every_family_can_be_described(preset):
    text, values = ask("describe", preset), facts(preset)
    assert f"{values['parameters']['total']:,}" in text
    assert sum(row["layers"] for row in values["layers"]) == sum(
        stack.num_hidden_layers for stack in preset_named(preset).stacks
    )
    forward = values["flops_per_token"]
    assert sum(forward["parts"].values()) == pytest.approx(forward["forward"])


def test_what_is_shown_of_a_mixture_with_windows_and_latents():
    assert "2 of 8 × 14,336 silu, gated" in ask("describe", "mixtral-8x7b")
    assert "12,879,925,248   27.6 %" in ask("describe", "mixtral-8x7b")
    gemma = ask("describe", "gemma-2-2b")
    assert gemma.count("8 heads of 256, 4 of keys") == 2  # layers with a window, and without
    assert "in layers that look back only as far as their window" in gemma
    deepseek = facts("deepseek-v3")
    assert [row["layers"] for row in deepseek["layers"]] == [3, 58]
    assert deepseek["cache_bytes"]["per_token"] == 61 * (512 + 64) * 2


def test_memory_grows_with_sequences_and_with_context():
    short, long = facts("llama-3-8b", "--context-length", "1000"), facts("llama-3-8b", "--context-length", "2000")
    assert [row["sequences"] for row in short["inference"]] == [1, 8, 32]
    assert [row["cache"] for row in short["inference"]] == [n * 1000 * 131_072 for n in (1, 8, 32)]
    assert long["inference"][0]["cache"] == 2 * short["inference"][0]["cache"]
    assert short["inference"][0]["bfloat16"] == 2 * 8_030_261_248 + 131_072_000
    whole, checkpointed = (next(r for r in short["training"] if r["checkpointing"] == c) for c in (False, True))
    assert checkpointed["activations"] < whole["activations"] / 5
    assert whole["optimizer"] == 8 * 8_030_261_248
    assert long["flops_per_token"]["parts"]["scores"] == 2 * short["flops_per_token"]["parts"]["scores"]


def test_a_source_is_counted_behind_an_encoder():
    text, values = ask("describe", "t5-small"), facts("t5-small", "--context-length", "100")
    assert "12,288 bytes per token in bfloat16; 12,288 per token of the source" in text
    assert {row["stack"] for row in values["layers"]} == {"encoder", "decoder"}
    assert values["inference"][0]["cache"] == 100 * 2 * 12_288


def test_models_that_are_not_served_say_so(tmp_path):
    config = preset_named("bert-base-uncased")
    assert facts("bert-base-uncased")["cache_bytes"]["per_token"] == 0
    linear = {"kind": "linear", "num_attention_heads": 2, "head_dim": 8}
    stack = config.encoder.model_copy(update={"causal": True})
    decoder = type(stack).model_validate({**stack.to_dict(), "attention": linear})
    refused = description(config.model_copy(update={"encoder": None, "decoder": decoder}), 128)["cache_bytes"]
    assert "linear attention" in refused["refused"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [("lama-3-8b", "did you mean 'llama-3-8b'"), ("LLAMA-3-8B", "did you mean 'llama-3-8b'"),
     ("nothing/like/it", "no file or folder.*`lmworks model list`")],
)  # fmt: skip
def test_neither_path_nor_preset(asked, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=told):
        cli.main(["model", "describe", asked], standalone_mode=False)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises((CheckpointError, ConfigError), match=r"config\.json"):
        cli.main(["model", "describe", str(tmp_path)], standalone_mode=False)


def test_the_list_has_every_preset_with_its_size():
    rows = {row["preset"]: row for row in map(json.loads, ask("list", "--json").splitlines())}
    assert rows.keys() == preset_names().keys()
    assert rows["llama-3-8b"] == {"family": "llama", "preset": "llama-3-8b", "parameters": 8_030_261_248,
                                  "active_parameters": 8_030_261_248, "context_length": 8192}  # fmt: skip
    line = next(line for line in ask("list").splitlines() if "mixtral-8x7b" in line)
    assert line.split() == ["mixtral", "mixtral-8x7b", "46.7", "B", "12.9", "B", "32,768"]


def test_names_of_presets_are_those_of_one_family():
    assert len(preset_names()) == sum(len(family_named(name).hf_presets) for name in FAMILIES)
    assert {"llama-300m", "llama-1b", "llama-10b", "llama-100b"} <= preset_names().keys()


def test_the_ladder_has_the_sizes_it_is_called_by():
    for name, size in {"llama-300m": 3e8, "llama-1b": 1e9, "llama-10b": 1e10, "llama-100b": 1e11}.items():
        assert parameters(preset_named(name)).total == pytest.approx(size, rel=0.05)


def test_described_bytes_are_those_of_the_built_cache():
    """The engine allocates what is announced."""
    config = family_named("llama").config_from_hf(HF)
    cache = KVCache(config, num_blocks=2, block_size=4, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert sum(t.nbytes for t in cache.layers) == 8 * description(config, 64)["cache_bytes"]["per_token"]


def test_the_guide_shows_what_the_command_computes():
    """Every row of the ladder's table, and the figures in the text below it."""
    guide = (Path(__file__).parents[2] / "docs/guides/sizes.md").read_text()
    for name in ("llama-300m", "llama-1b", "llama-10b", "llama-100b"):
        values = facts(name, "--context-length", "4096")
        inference = {row["sequences"]: row for row in values["inference"]}
        training = {(row["sequences"], row["checkpointing"]): row for row in values["training"]}
        weights = values["weight_bytes"]
        shown = [weights["bfloat16"], weights["int8"], inference[1]["cache"], inference[32]["bfloat16"]]
        shown += [training[key]["total"] for key in ((1, False), (8, False), (8, True))]
        cells = [f"`{name}`", f"{values['parameters']['total']:,}", *map(readable_bytes, shown)]
        assert f"| {' | '.join(cells)} |" in guide
