"""`lmworks trace RUN --row N` names the documents that a row was packed from."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lmworks.cli.main import cli
from lmworks.core.errors import ArtifactError
from lmworks.data.corpus.prepare import PrepareConfig, prepare
from lmworks.data.tokens.tokenize import TokenizeConfig, tokenize
from lmworks.tokenization import load_tokenizer
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer
from lmworks.train.pretrain import PretrainConfig, assemble, pretrain


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    rows = [{"id": f"doc-{n}", "text": f"Text {n} is of the color {n * 7919}. " * 4} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(PrepareConfig.parse({
        "inputs": [str(folder / "rows.jsonl")], "output": str(folder / "corpus"), "preset": "none",
        "license": "CC0-1.0", "validation_fraction": 0.2, "dedup": {"near": False}, "max_overlap": 1.0,
    }))  # fmt: skip
    train_tokenizer(TokenizerConfig(corpus=folder / "corpus", output=folder / "tokenizer", vocab_size=280))
    tokenize(TokenizeConfig(corpus=folder / "corpus", tokenizer=folder / "tokenizer", output=folder / "tokens"))
    values = {
        "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        "tokens": folder / "tokens", "tokenizer": folder / "tokenizer", "output": folder / "model",
        "train": {"steps": 2, "batch_tokens": 128, "sequence_length": 64},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmworks.train.pretrain.plot_run", lambda *_: None)
        pretrain(PretrainConfig.parse(values))
    return folder / "model"


def traced(*words: str | Path) -> list[dict[str, Any]]:
    result = CliRunner().invoke(cli, ["trace", *map(str, words), "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_a_row_holds_text_of_the_documents_it_is_traced_to(run: Path, tmp_path: Path) -> None:
    from lmworks.core.lineage import load_manifest

    rows = assemble(PretrainConfig.parse(load_manifest(run).config), tmp_path).trainer.rows
    tokenizer = load_tokenizer(run.parent / "tokenizer")
    for row in range(4):
        batch = rows.rows(row, 1)
        ends = batch.cu_seqlens.tolist()
        pieces = [tokenizer.decode(batch.input_ids[a:b].tolist()) for a, b in pairwise(ends)]
        documents = traced(run, "--row", str(row))
        assert len(documents) == len(pieces)
        for document, piece in zip(documents, pieces, strict=True):
            assert (document["row"], document["license"]) == (row, "CC0-1.0")
            assert piece.strip()
            assert piece.strip() in document["text"].removesuffix("…")


def test_a_step_is_its_rows(run: Path) -> None:
    assert traced(run, "--step", "2") == [*traced(run, "--row", "2"), *traced(run, "--row", "3")]
    result = CliRunner().invoke(cli, ["trace", str(run), "--row", "0"])
    assert result.exit_code == 0
    assert "CC0-1.0" in result.output
    assert "doc-" in result.output


def test_what_cannot_be_traced_is_named(run: Path, tmp_path: Path) -> None:
    for words, said in (
        ((run, "--step", "3"), "none of the 2 steps"),
        ((tmp_path, "--row", "0"), "no pretraining run"),
    ):
        outcome = CliRunner().invoke(cli, ["trace", *map(str, words)])
        assert isinstance(outcome.exception, ArtifactError)
        assert said in str(outcome.exception)
    corpus = run.parent / "corpus/train.jsonl"
    before = corpus.read_bytes()
    corpus.write_bytes(before + b"{}\n")
    outcome = CliRunner().invoke(cli, ["trace", str(run), "--row", "0"])
    corpus.write_bytes(before)
    assert "changed" in str(outcome.exception)


def test_tokens_that_have_changed_since_the_run_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent, tmp_path / "life")
    model, tokens = (tmp_path / "life" / name / "lineage.json" for name in ("model", "tokens"))
    manifest = json.loads(model.read_text())
    manifest["config"] |= {name: str(tmp_path / "life" / name) for name in ("tokens", "tokenizer")}
    model.write_text(json.dumps(manifest))
    assert traced(model.parent, "--row", "0") == [
        {**document, "tokens": str(tokens.parent)} for document in traced(run, "--row", "0")
    ]
    tokens.write_text(json.dumps(json.loads(tokens.read_text()) | {"content_hash": "of another version"}))
    result = CliRunner().invoke(cli, ["trace", str(model.parent), "--row", "0"])
    assert isinstance(result.exception, ArtifactError)
    assert "has changed since" in str(result.exception)
