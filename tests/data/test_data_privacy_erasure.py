"""A document is followed from its source to the models trained on it, and removed from everything that holds it."""

import itertools
import json
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

import lmworks.core.lineage as lineage
import lmworks.data.privacy.erasure as erasure
from lmworks.cli.main import cli
from lmworks.cli.trace_rows import line_of
from lmworks.core.errors import ArtifactError
from lmworks.core.lineage import content_hash, load_manifest, verify, write_artifact
from lmworks.core.trace import trace
from lmworks.data.corpus.prepare import PrepareConfig, prepare
from lmworks.data.privacy.exposure import find_exposure
from lmworks.data.privacy.history import after_removal, came_from, carried_over
from lmworks.data.privacy.vault import read_vault, vault_path
from lmworks.data.tokens.convert import convert_tokens
from lmworks.data.tokens.token_files import documents
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
    (root / "key").chmod(0o600)
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
    (life / "source/documents.jsonl").unlink()
    damaged, missing = find_exposure(document, life).unreadable
    assert "is damaged" in damaged
    assert "No such file" in missing
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


@pytest.fixture
def converted(life):
    """Also both splits as one .ds, that for Megatron, that as a .bin, that as tokens again; and what came of it."""
    tokenizer = load_tokenizer(life / "tokenizer")
    both = [life / "tokens" / split for split in ("train", "validation")]
    convert_tokens(both, life / "all.ds", tokenizer)
    convert_tokens([life / "all.ds"], life / "pair.idx", tokenizer)
    convert_tokens([life / "pair.bin"], life / "all.bin", tokenizer)
    convert_tokens([life / "all.bin"], life / "again", tokenizer, validation=both[1:])
    for name, kind, parents, facts in (
        ("late", "model", {"tokens": life / "again"}, {}),
        ("late.checkpoints/step-2", "checkpoint", {}, {"run": {"tokens": content_hash(life / "again")}}),
        ("filter", "quality-filter", {"good.0": life / "corpus/train.jsonl"}, {}),
    ):
        with write_artifact(life / name, kind, config=facts, parents=parents) as writer:
            (writer.folder / "weights").write_text(name)
    with write_artifact(
        life / "late.gguf", "model", config={}, parents={"model": life / "late"}, one_file=True
    ) as made:
        (made.folder / "late.gguf").write_text("weights")
    return life


def held_in(life):
    """The texts in every form of the tokens, told by decoding them."""
    tokenizer = load_tokenizer(life / "tokenizer")
    end = tokenizer.eos_token_ids[0]
    places = [life / "all.ds", life / "pair.idx", life / "all.bin", life / "again/train", life / "again/validation"]
    return [[tokenizer.decode(ids.tolist()) for ids in documents([p], end, tokenizer.vocab_size)] for p in places]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_erasure_reaches_through_conversions(converted, split):
    kept = {name: rows(converted, name) for name in ("train", "validation")}
    document = kept[split].pop(1)
    said = command(document["id"], "--root", converted, "--apply")
    for name in ("corpus", "tokens", "all.ds", "pair.idx", "all.bin", "again"):
        assert f"removed from: {converted / name} " in said
        verify(converted / name)
    for name in ("model", "late", "late.gguf", "late.checkpoints/step-2"):
        assert f"retrain: {converted / name} " in said
    assert (f"made from what held it: {converted}/filter" in said) == (split == "train")
    train, held = ([row["text"] for row in kept[name]] for name in ("train", "validation"))
    assert held_in(converted) == [*[train + held] * 4, held]
    again = trace(converted / "again")
    changed = {node.parent.role for node in again.walk() if node.state != "intact"}
    assert changed == {"inputs.0"}, "what the corpus was prepared from is named as it was then"
    for number in (0, len(train) - 1, len(train)):  # the last is of the validation split
        file, line = line_of(again, "train", number)
        assert json.loads(file.read_text().splitlines()[line])["text"] == (train + held)[number]
    assert kinds(find_exposure(document["id"], converted))[0] == []
    command(kept["train"][4]["id"], "--root", converted, "--apply")  # another one, from what is left
    assert held_in(converted)[3] == train[:4] + train[5:] + held


class Killed(BaseException):
    """No `except` and no cleaning up comes after it."""


def die_at(last, patch):
    """From the `last` call on that changes what lies on the disk, none is carried out."""
    calls = itertools.count(1)

    def counted(real):
        def call(*args, **kwargs):
            if next(calls) >= last:
                raise Killed
            return real(*args, **kwargs)

        return call

    for owner, name in ((Path, "rename"), (Path, "replace"), (Path, "rmdir"), (shutil, "rmtree"), (os, "fsync")):
        patch.setattr(owner, name, counted(getattr(owner, name)))


def test_an_erasure_that_is_killed_anywhere_ends_the_same_when_run_again(converted, tmp_path, monkeypatch):
    def state(root):
        manifests = [json.loads(file.read_text()) for file in sorted(root.rglob("*lineage.json"))]
        hidden = [file.name for file in root.rglob(".*")]
        return [(m["content_hash"], m["parents"], m["notes"]) for m in manifests], held_in(root), hidden

    document = rows(converted)[3]["id"]
    shutil.copytree(converted, tmp_path / "whole")
    erasure.erase(find_exposure(document, tmp_path / "whole"))
    wanted = state(tmp_path / "whole")
    assert wanted[2] == []
    monkeypatch.setattr(lineage, "_alive", lambda pid: False)
    for last in itertools.count(1, 17):
        shutil.copytree(converted, tmp_path / "cut")
        with monkeypatch.context() as patch, suppress(Killed):
            die_at(last, patch)
            erasure.erase(find_exposure(document, tmp_path / "cut"))
            break
        erasure.erase(find_exposure(document, tmp_path / "cut"))
        assert state(tmp_path / "cut") == wanted, f"killed at call {last}"
        shutil.rmtree(tmp_path / "cut")
    assert last > 50


def test_numbers_go_over_conversions_that_leave_documents_out():
    converted = {"read": [4, 3], "left_out": [1, 5]}  # of 0123 456 there went 023 46
    assert [came_from(converted, number) for number in range(5)] == [(0, 0), (0, 2), (0, 3), (1, 0), (1, 2)]
    assert carried_over(converted, 0, {1: 7, 3: 8}) == {2: 8}
    assert carried_over(converted, 1, {0: 7, 1: 8, 2: 9}) == {3: 7, 4: 9}
    assert after_removal(converted, {0: {0: 1}, 1: {1: 1}}) == {"read": [3, 2], "left_out": [0]}


def test_rows_that_were_synthesized_from_it_go_too_and_loose_files_are_named(tmp_path):
    with write_artifact(tmp_path / "rows", "conversations", config={}) as writer:
        made = [
            {"id": "a", "lineage": {"parents": ["d"]}}, {"id": "b", "lineage": {"parents": ["a"]}},
            {"id": "c", "lineage": {"parents": ["other"]}},
        ]  # fmt: skip
        (writer.folder / "conversations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        (writer.folder / "outcomes.jsonl").write_text(json.dumps({"attempt": 3, "parents": ["b"]}) + "\n")
        writer.metrics = {"rows": 3}
    with write_artifact(tmp_path / "model", "model", config={}, parents={"conversations.0": tmp_path / "rows"}):
        pass
    (tmp_path / "copy.jsonl").write_text(json.dumps({"id": "b", "x": 1}) + "\nno json with b\n")
    with write_artifact(tmp_path / "tuned", "model", config={}, parents={"conversations.0": tmp_path / "copy.jsonl"}):
        pass
    found = find_exposure("d", tmp_path)
    assert found.loose == (tmp_path / "copy.jsonl",)
    assert [manifest.path.name for manifest in found.trained] == ["model", "tuned"]
    erasure.erase(found)
    assert json.loads((tmp_path / "rows/conversations.jsonl").read_text())["id"] == "c"
    assert (tmp_path / "rows/outcomes.jsonl").read_text() == ""
    assert load_manifest(tmp_path / "rows").metrics == {"rows": 1}


def test_a_report_forgets_what_was_dropped_and_names_its_duplicates(tmp_path):
    pair = {"dropped": {"id": "gone", "text": "MARK"}, "kept": {"id": "twin", "text": "MARK"}}
    found = [{"document": "gone", "text": "MARK"}, {"document": "else", "text": "z"}]
    with write_artifact(tmp_path / "corpus", "corpus", config={}) as writer:
        (writer.folder / "train.jsonl").write_text('{"id": "twin", "text": "x"}\n')
        report = {"duplicates": {"near": [pair]}, "contamination": [{"item": "q/1", "found": found}]}
        (writer.folder / "report.json").write_text(json.dumps(report))
    exposure = find_exposure("gone", tmp_path)
    assert exposure.twins == ("twin",)
    assert [holding.places for holding in exposure.holdings] == [{}]
    erasure.erase(exposure)
    left = json.loads((tmp_path / "corpus/report.json").read_text())
    assert left == {"duplicates": {"near": []}, "contamination": [{"item": "q/1", "found": found[1:]}]}
    assert not find_exposure("gone", tmp_path)
