"""`lmworks export gguf` as a person runs it: a folder becomes a file that every other command takes."""

import shutil
from pathlib import Path

import pytest
import torch

from lmworks.cli.main import cli
from lmworks.core.errors import ConfigError, TokenizerError
from lmworks.models.build import build_model
from lmworks.models.families import family_named
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.tokenization import load_tokenizer
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer

HF = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("export")
    (root / "corpus").mkdir()
    row = '{"id": "1", "text": "the dog and the other dog and 123 cats", "source": "t", "license": "t"}\n'
    (root / "corpus/train.jsonl").write_text(row * 9)
    train_tokenizer(TokenizerConfig(corpus=root / "corpus", output=root / "model", vocab_size=290))
    (root / "model/lineage.json").unlink()
    save_pretrained(build_model(family_named("llama").config_from_hf(HF), seed=0), root / "model")
    return root / "model"


def run(*arguments: object) -> None:
    cli.main([str(a) for a in arguments], standalone_mode=False)


def test_a_folder_becomes_a_file_that_holds_everything(folder, tmp_path, capsys):
    output = tmp_path / "new/tiny.gguf"
    run("export", "gguf", folder, output, "--dtype", "f32")
    assert capsys.readouterr().out == f"{output}: {output.stat().st_size:,} bytes\n"
    model, tokenizer = load_pretrained(output), load_tokenizer(output)
    ours = load_pretrained(folder).state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())
    assert tokenizer.encode("the other cats 12") == load_tokenizer(folder).encode("the other cats 12")
    run("export", "gguf", output, tmp_path / "small.gguf")  # from GGUF to GGUF
    assert (tmp_path / "small.gguf").stat().st_size < output.stat().st_size


def test_mistakes(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"does not end in \.gguf"):
        run("export", "gguf", folder, tmp_path / "m.bin")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    save_pretrained(build_model(family_named("llama").config_from_hf({**HF, "vocab_size": 9}), seed=0), other)
    with pytest.raises(TokenizerError, match="the weights only 9 embedding rows"):
        run("export", "gguf", other, tmp_path / "m.gguf")
    (other / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"holds no tokenizer\.json"):
        run("export", "gguf", other, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
