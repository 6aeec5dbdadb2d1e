"""A document is followed from its source to the models trained on it, and removed from everything that holds it."""

import json
import random
import shutil

import pytest
from click.testing import CliRunner

import lmworks.data.privacy.erasure as erasure
from lmworks.cli.main import cli
from lmworks.core.errors import ArtifactError
from lmworks.core.lineage import load_manifest, verify, write_artifact
from lmworks.data.corpus.prepare import PrepareConfig, prepare
from lmworks.data.privacy.exposure import find_exposure
from lmworks.data.privacy.vault import read_vault, vault_path
from lmworks.data.tokens.token_store import TokenStore
from lmworks.data.tokens.tokenize import TokenizeConfig, tokenize
from lmworks.tokenization import load_tokenizer
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer

WORDS = [f"{a}{b}{c}" for a in "bdgklmnprst" for b in "aeiou" for c in "lmnrst"]


def text(number):
    rng = random.Random(number)
    body = " ".join(rng.choices(WORDS, k=60))
    return f"{body} person{number}@mail.example {' '.join(rng.choices(WORDS, k=20))}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source, its corpus with a vault, a tokenizer, tokens, and a model trained on them."""
    from lmworks.train.pretrain import PretrainConfig, pretrain

    root = tmp_path_factory.mktemp("life")
    with write_artifact(root / "source", "source", config={}) as writer:
        rows = [{"id": f"doc{n}", "text": text(n), "license": "CC0-1.0"} for n in range(24)]
        (writer.folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "key").write_bytes(b"0123456789abcdef")
    values = {"inputs": [str(root / "source")], "output": str(root / "corpus"), "preset": "none",
              "validation_fraction": 0.2, "pii": {"replacement": "vault", "key_file": str(root / "key")}}  # fmt: skip
    prepare(PrepareConfig.parse(values))
    train_tokenizer(TokenizerConfig(corpus=root / "corpus", output=root / "tokenizer", vocab_size=280))
    encode(root)
    values = {
        "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        "tokens": root / "tokens", "tokenizer": root / "tokenizer", "output": root / "model",
        "train": {"steps": 2, "batch_tokens": 256, "sequence_length": 64, "checkpoint_every": 2, "eval_every": 2},
    }  # fmt: skip
    pretrain(PretrainConfig.parse(values))
    return root


def encode(root):
    tokenize(TokenizeConfig(corpus=root / "corpus", tokenizer=root / "tokenizer", output=root / "tokens"))


@pytest.fixture
def life(made, tmp_path):
    """A copy to change."""
    shutil.copytree(made, tmp_path / "life")
    return tmp_path / "life"


def rows(root, split="train"):
    return [json.loads(line) for line in (root / f"corpus/{split}.jsonl").read_text().splitlines()]


def command(*words):
    result = CliRunner().invoke(cli, ["data", "forget", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def kinds(exposure):
    return [holding.manifest.kind for holding in exposure.holdings], [m.kind for m in exposure.trained]


def consistent(root):
    """Every artifact is whole, and the tokens are those of the corpus, document by document."""
    tokenizer = load_tokenizer(root / "tokenizer")
    for name in ("source", "corpus", "tokens", "model"):
        verify(root / name)
    tokens = load_manifest(root / "tokens")
    for split in ("train", "validation"):
        store, kept = TokenStore(root / "tokens" / split), rows(root, split)
        assert [tokenizer.decode(store[n].tolist()[1:-1]) for n in range(len(store))] == [row["text"] for row in kept]
        assert store.num_bytes == sum(len(row["text"].encode()) for row in kept)
        assert tokens.metrics[f"{split}_documents"] == load_manifest(root / "corpus").metrics[f"{split}_documents"]
    assert (
        next(p for p in tokens.parents if p.role == "corpus").content_hash
        == load_manifest(root / "corpus").content_hash
    )


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_document_is_listed_then_removed_everywhere(life, split):
    document = rows(life, split)[1]["id"]
    before = {name: load_manifest(life / name).content_hash for name in ("source", "corpus", "tokens", "model")}
    said = command(document, "--root", life)
    assert f"holds it: {life}/corpus (corpus: 1 in {split})" in said
    assert f"holds it: {life}/tokens (tokens: 1 in {split})" in said
    assert f"trained on it, retrain: {life}/model" in said
    assert f"made from what held it: {life}/tokenizer" in said
    assert {name: load_manifest(life / name).content_hash for name in before} == before, "nothing was to change"
    sealed = len(read_vault(vault_path(life / "corpus")))
    command(document, "--root", life, "--apply")
    consistent(life)
    assert document not in {row["id"] for s in ("train", "validation") for row in rows(life, s)}
    assert f'"{document}"' not in (life / "corpus/report.json").read_text()
    assert f'"id": "{document}"' not in (life / "source/documents.jsonl").read_text()
    assert len(read_vault(vault_path(life / "corpus"))) == sealed - 1
    assert load_manifest(life / "model").content_hash == before["model"]


def test_models_that_saw_it_stay_known_until_they_are_trained_anew(life):
    first, second = (row["id"] for row in rows(life)[2:9:6])
    command(first, "--root", life, "--apply")
    after = find_exposure(first, life)
    assert kinds(after) == ([], ["model"])
    assert kinds(find_exposure(second, life)) == (["corpus", "source", "tokens"], ["model"])
    manifest = json.loads((life / "model/lineage.json").read_text())
    for parent in manifest["parents"]:
        if parent["role"] == "tokens":
            parent["content_hash"] = load_manifest(life / "tokens").content_hash
    (life / "model/lineage.json").write_text(json.dumps(manifest))  # as if trained on the new version
    assert kinds(find_exposure(first, life)) == ([], [])
    assert kinds(find_exposure(second, life)) == (["corpus", "source", "tokens"], ["model"])


def test_an_interrupted_erasure_is_finished_by_the_next(life, monkeypatch):
    """Also where other documents were erased between: rows are found in the version that the tokens were made from."""
    ids = [row["id"] for row in rows(life)]
    real = erasure._remove_tokens
    monkeypatch.setattr(erasure, "_remove_tokens", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for document in (ids[5], ids[1], ids[7]):
        with pytest.raises(KeyboardInterrupt):
            erasure.erase(find_exposure(document, life))
    monkeypatch.setattr(erasure, "_remove_tokens", real)
    exposure = find_exposure(ids[5], life)
    assert [(h.manifest.kind, sorted(h.places["train"])) for h in exposure.holdings] == [("tokens", [1, 5, 7])]
    erasure.erase(exposure)
    consistent(life)
    assert all(kinds(find_exposure(document, life)) == ([], ["model"]) for document in (ids[1], ids[5], ids[7]))


def test_the_pieces_of_a_divided_document_belong_to_it(tmp_path):
    with write_artifact(tmp_path / "corpus", "corpus", config={}) as writer:
        lines = [{"id": name, "text": "x", "source": "s"} for name in ("d-0", "d-1", "d", "d-x", "dd", "e-d-0")]
        (writer.folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        writer.metrics = {"train_documents": 6}
    erasure.erase(find_exposure("d", tmp_path))
    left = [json.loads(line)["id"] for line in (tmp_path / "corpus/train.jsonl").read_text().splitlines()]
    assert left == ["d-x", "dd", "e-d-0"]
    assert load_manifest(tmp_path / "corpus").metrics["train_documents"] == 3


def test_what_nobody_has_is_an_error_and_damage_is_named(life):
    with pytest.raises(ArtifactError, match="no artifact below"):
        command("nobody", "--root", life)
    with pytest.raises(ArtifactError, match="not a folder"):
        find_exposure("x", life / "none")
    document = rows(life)[0]["id"]
    (life / "tokens/lineage.json").write_text("{")
    assert "is damaged" in find_exposure(document, life).unreadable[0]
    with (life / "corpus/report.json").open("a") as report:
        report.write(" ")
    with pytest.raises(ArtifactError, match="does not match"):
        erasure.erase(find_exposure(document, life))


def test_a_vault_is_opened_on_the_command_line(life):
    row = rows(life)[0]
    words = ["data", "reveal", str(vault_path(life / "corpus")), "--key-file", str(life / "key")]
    result = CliRunner().invoke(cli, words, input=row["text"])
    assert result.exit_code == 0
    assert result.output == text(int(row["id"].removeprefix("doc")))
