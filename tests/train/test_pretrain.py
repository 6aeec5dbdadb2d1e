"""The pretrain stage: what its folder holds, resume through the stage, and its named errors."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from pretrain_case import config, prepare

import lmworks.train.held_out_text as held_out_text
from lmworks.core.errors import ArtifactError, ConfigError, MissingExtraError, TokenizerError, TrainingError
from lmworks.core.lineage import verify
from lmworks.models.hub import load_pretrained
from lmworks.tokenization import load_tokenizer
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer
from lmworks.train.model_preset import ModelPreset
from lmworks.train.pretrain import pretrain
from lmworks.train.validation import bits_per_byte


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("inputs"))


def test_the_folder_is_a_whole_model_with_its_history(inputs: Path, tmp_path: Path):
    output = tmp_path / "model"
    manifest = pretrain(config(inputs, output))
    assert verify(output).content_hash == manifest.content_hash
    assert manifest.kind == "model"
    assert {p.role for p in manifest.parents} == {"tokens", "tokenizer"}
    assert {"config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl", "loss.png"} <= set(manifest.files)
    assert not (tmp_path / "model.checkpoints").exists()
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(1, 13))
    measured = [r["validation_bits_per_byte"] for r in records if "validation_bits_per_byte" in r]
    assert len(measured) == 2
    assert measured[1] < measured[0] < 8.2
    assert manifest.metrics["validation_bits_per_byte"] == measured[1]
    assert 0 < manifest.metrics["mfu"] < 1
    assert load_tokenizer(output).fingerprint == load_tokenizer(inputs / "tokenizer").fingerprint
    assert load_pretrained(output).config.eos_token_ids


def test_a_stopped_stage_goes_on_and_gives_the_same_weights(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pretrain(config(inputs, tmp_path / "straight"))
    original, seen = held_out_text.bits_per_byte, []

    def stops(*args: object, **kwargs: object) -> float:
        if not seen:
            seen.append(os.kill(os.getpid(), signal.SIGTERM))
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(held_out_text, "bits_per_byte", stops)
    with pytest.raises(SystemExit):
        pretrain(config(inputs, tmp_path / "cut"))
    assert not (tmp_path / "cut").exists()
    with pytest.raises(TrainingError, match=r"model\.hidden_size was 32 and is now 64"):
        pretrain(config(inputs, tmp_path / "cut", **{"model.hidden_size": 64}))
    pretrain(config(inputs, tmp_path / "cut"))
    one, other = (load_pretrained(tmp_path / name).state_dict() for name in ("straight", "cut"))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_without_matplotlib_there_is_no_plot_and_a_message(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def missing(*_: object) -> None:
        raise MissingExtraError("the package 'matplotlib' is needed here and is not installed", "Install it")

    monkeypatch.setattr("lmworks.train.plot.require", missing)
    manifest = pretrain(config(inputs, tmp_path / "model", **{"train.steps": 2}))
    assert "loss.png" not in manifest.files
    assert "no loss.png" in capsys.readouterr().err


def test_tokens_of_another_tokenizer_are_refused(inputs: Path, tmp_path: Path):
    other = tmp_path / "other"
    train_tokenizer(TokenizerConfig(corpus=inputs / "corpus", output=other, vocab_size=270))
    with pytest.raises(TokenizerError, match="Tokenize the corpus again"):
        pretrain(config(inputs, tmp_path / "model", tokenizer=other))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_tokens_are_named(inputs: Path, tmp_path: Path, damage: str):
    broken = tmp_path / "tokens"
    shutil.copytree(inputs / "tokens", broken)
    shard = broken / "train" / "shard-00000.bin"
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(ArtifactError, match=r"shard-00000\.bin"):
        pretrain(config(inputs, tmp_path / "model", tokens=broken))


@pytest.mark.parametrize("preset", ["llama", "qwen3", "gpt2"])
def test_presets_build_and_round_trip_through_the_hub(inputs: Path, tmp_path: Path, preset: str):
    pretrain(config(inputs, tmp_path / "m", **{"train.steps": 1, "model.preset": preset, "model.hidden_size": 64}))
    loaded = load_pretrained(tmp_path / "m").config
    assert loaded.family == preset
    assert loaded.decoder.mlp.intermediate_size == (256 if preset == "gpt2" else 192)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 100, "num_attention_heads": 3}, "hidden_size 100 is not a multiple of num_attention_heads 3"),
        ({"hidden_size": 192, "num_key_value_heads": 2}, "num_attention_heads 3 is not a multiple of"),
        ({"hidden_size": 6, "num_attention_heads": 2}, "must be even"),
        ({"preset": "gpt2", "num_key_value_heads": 2}, "as many key-value heads"),
        ({"preset": "lama"}, "preset = 'lama'"),
        ({"hidden": 64}, "did you mean 'hidden_size'"),
    ],
)
def test_impossible_sizes_are_refused(values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        ModelPreset.parse(values)


def test_the_defaults_make_the_five_million_parameter_model():
    made = ModelPreset().to_model_config(vocab_size=4096, sequence_length=512, bos_token_id=0, eos_token_ids=(0,))
    assert made.decoder.mlp.intermediate_size == 704
    assert made.decoder.attention.num_attention_heads == 4
    assert made.max_position_embeddings == 512


def test_bits_per_byte_counts_each_text_token_once_whatever_the_windows(inputs: Path, tmp_path: Path):
    pretrain(config(inputs, tmp_path / "m", **{"train.steps": 2}))
    model = load_pretrained(tmp_path / "m")
    document = [0, *range(5, 45), 0]
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token is equally likely, so windows cannot matter
    uniform = 40 * math.log2(280) / 90
    for window in (1, 7, 40, 512):
        assert bits_per_byte(model, [document, [0, 0]], 90, window=window) == pytest.approx(uniform, rel=1e-5)
    with pytest.raises(Exception, match="0 bytes"):
        bits_per_byte(model, [], 0)


def test_bits_per_byte_is_the_models_own_log_probability(inputs: Path, tmp_path: Path):
    from lmworks.nn.attention_context import PackedContext

    pretrain(config(inputs, tmp_path / "m", **{"train.steps": 2}))
    model = load_pretrained(tmp_path / "m")
    documents = [[0, 7, 9, 200, 31, 0], [0, 12, 0]]
    nats = 0.0
    with torch.no_grad():
        for ids in documents:
            x = torch.tensor(ids[:-2])
            cu_seqlens = torch.tensor([0, len(x)], dtype=torch.int32)
            logits = model.logits(model(x, torch.arange(len(x)), PackedContext(cu_seqlens)))
            nats -= logits.log_softmax(-1)[torch.arange(len(x)), torch.tensor(ids[1:-1])].sum().item()
    assert bits_per_byte(model, documents, 10) == pytest.approx(nats / math.log(2) / 10, rel=1e-5)
