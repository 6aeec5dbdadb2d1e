"""Token files in every form from every other: the same documents, or a reason; nothing written over."""

import itertools
import json
from pydoc_data.topics import topics

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.cli.main import cli
from lmworks.core.errors import ArtifactError, DataError, TokenizerError
from lmworks.core.lineage import verify, write_artifact
from lmworks.data.tokens.convert import convert_tokens
from lmworks.data.tokens.datatrove_store import DatatroveFile
from lmworks.data.tokens.token_files import documents
from lmworks.data.tokens.token_store import TokenStore, TokenStoreWriter
from lmworks.tokenization import load_tokenizer
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer

MARK = 9
DOCUMENTS = [[5, 6, MARK], [7, MARK], [*range(10, 30), MARK], [8, MARK]]


def store(folder, texts=DOCUMENTS, vocab_size=100):
    with TokenStoreWriter(folder, vocab_size, 8) as writer:
        writer.add((ids, len(ids)) for ids in texts)
    return folder


def read(path, vocab_size=100):
    return [ids.tolist() for ids in documents([path], MARK, vocab_size)]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    with write_artifact(folder / "corpus", "corpus", config={}) as writer:
        for split in ("train", "validation"):
            rows = (json.dumps({"id": name, "text": text}) for name, text in sorted(topics.items())[:9])
            (writer.folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    train_tokenizer(TokenizerConfig(corpus=folder / "corpus", output=folder / "t", vocab_size=300))
    return folder / "t"


@pytest.mark.parametrize(("vocab_size", "width"), [(100, 2), (100_000, 4)])
@pytest.mark.parametrize("way", list(itertools.permutations(("a.ds", "b.bin", "c.idx"), 2)))
def test_every_form_comes_from_every_other(tmp_path, way, vocab_size, width):
    place = store(tmp_path / "s", vocab_size=vocab_size)
    for name in way:
        (account,) = convert_tokens([place], tmp_path / name, vocab_size=vocab_size, end_token=MARK).values()
        place = tmp_path / name
        assert (account.documents, account.tokens, account.empty, account.unmarked) == (4, 28, 0, 0)
        assert read(place, vocab_size) == DOCUMENTS
        content = place.with_suffix(".bin") if place.suffix == ".idx" else place
        assert content.stat().st_size == 28 * width
    assert not list(tmp_path.glob(".*"))


def test_several_sources_follow_one_another(tmp_path):
    one, other = store(tmp_path / "s", DOCUMENTS[:2]), tmp_path / "o.bin"
    convert_tokens([store(tmp_path / "t", DOCUMENTS[2:])], other, end_token=MARK)
    convert_tokens([one, other], tmp_path / "all.ds", vocab_size=100, end_token=MARK)
    assert read(tmp_path / "all.ds") == DOCUMENTS
    assert DatatroveFile(tmp_path / "all.ds").token_bytes == 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=6), min_size=1, max_size=6))
def test_a_bin_reads_back_as_it_was_or_is_refused(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("bin")
    try:
        (account,) = convert_tokens([store(folder / "s", texts)], folder / "a.bin", end_token=MARK).values()
    except DataError:
        clean = [ids[1:] if len(ids) > 1 and ids[0] == ids[-1] == MARK else ids for ids in texts]
        clean = [ids for ids in clean if ids != [MARK]]
        assert (
            not clean
            or any(ids.count(MARK) != 1 or MARK not in (ids[0], ids[-1]) for ids in clean)
            or (len({ids[0] == MARK for ids in clean}) == 2)
        )
        assert not (folder / "a.bin").exists()
        return
    found = read(folder / "a.bin")
    assert len(found) == account.documents == len(texts) - account.empty
    assert sum(map(len, found)) == sum(map(len, texts)) - account.unmarked - account.empty


def test_a_document_between_two_equal_marks_keeps_one(tmp_path):
    marked = [[MARK, 1, MARK], [MARK, 2, 3, MARK], [MARK, MARK]]
    (account,) = convert_tokens([store(tmp_path / "s", marked)], tmp_path / "a.bin", end_token=MARK).values()
    assert read(tmp_path / "a.bin") == [[1, MARK], [2, 3, MARK]]
    assert (account.unmarked, account.empty) == (3, 1)


def test_an_artifact_is_one_that_training_takes(tmp_path, tokenizer_folder):
    tokenizer = load_tokenizer(tokenizer_folder)
    end = tokenizer.eos_token_ids[0]
    texts = ["One fox.", "Two döner, 三只猫", "Held out"]
    ids = [[*tokenizer.encode(text), end] for text in texts]
    train, held = (
        store(tmp_path / name, some, tokenizer.vocab_size) for name, some in (("t", ids[:2]), ("v", ids[2:]))
    )
    convert_tokens([train], tmp_path / "a.ds", tokenizer)
    accounts = convert_tokens([tmp_path / "a.ds"], tmp_path / "tokens", tokenizer, validation=[held])
    assert [(name, account.documents) for name, account in accounts.items()] == [("train", 2), ("validation", 1)]
    manifest = verify(tmp_path / "tokens")
    assert manifest.kind == "tokens"
    assert manifest.notes == {
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "converted": {name: {"read": [n], "left_out": []} for name, n in (("train", 2), ("validation", 1))},
    }
    assert {parent.role for parent in manifest.parents} == {"train.0", "validation.0"}
    made = TokenStore(tmp_path / "tokens/train")
    assert [made[i].tolist() for i in range(2)] == ids[:2]
    assert made.num_bytes == sum(len(text.encode()) for text in texts[:2])
    with pytest.raises(TokenizerError, match="names its tokenizer"):
        convert_tokens([train], tmp_path / "other")


def test_nothing_is_written_over(tmp_path):
    source = store(tmp_path / "s")
    for name in ("a.ds", "a.bin", "folder"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(DataError, match="there already"):
            convert_tokens([source], tmp_path / name, end_token=MARK)
        assert (tmp_path / name).read_text() == "mine"
    (tmp_path / "b.ds.index").write_text("mine")
    with pytest.raises(DataError, match=r"b\.ds\.index is there already"):
        convert_tokens([source], tmp_path / "b.ds")
    assert (tmp_path / "b.ds.index").read_text() == "mine"
    assert not (tmp_path / "b.ds").exists()
    with pytest.raises(DataError, match="there already"):
        convert_tokens([source], source)
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_go_over_is_named(tmp_path):
    source = store(tmp_path / "s")
    (tmp_path / "other.idx").write_text("mine")
    cases = [
        ({"vocab_size": 20}, "a.ds", "the id 29, and the vocabulary ends at 20"),
        ({}, "a.bin", "an end token alone"),
        ({"end_token": 6}, "a.bin", "document 0 has the end token 6 1 times"),
        ({"end_token": MARK}, "a.parquet", "names no known form"),
        ({"end_token": MARK}, "other.bin", "would be read with the .idx beside it"),
        ({"end_token": MARK, "validation": [source]}, "a.ds", "no validation split"),
    ]
    for values, name, said in cases:
        with pytest.raises(DataError, match=said):
            convert_tokens([source], tmp_path / name, **values)
        assert not (tmp_path / name).exists()
    (tmp_path / "x.bin").write_bytes(np.asarray([1, MARK], "<u2").tobytes())
    with pytest.raises(DataError, match="does not say how large its vocabulary is"):
        convert_tokens([tmp_path / "x.bin"], tmp_path / "a.ds", end_token=MARK)
    store(tmp_path / "tokens/train")
    with pytest.raises(DataError, match=r"one of its splits: .*/train"):
        convert_tokens([tmp_path / "tokens"], tmp_path / "a.ds", vocab_size=100)
    with pytest.raises(ArtifactError, match="is missing"):
        convert_tokens([tmp_path / "none.ds"], tmp_path / "a.ds")
    with pytest.raises(DataError, match="hold no document"):
        convert_tokens([store(tmp_path / "e", [])], tmp_path / "a.ds")
    assert not list(tmp_path.glob(".*"))


def test_the_command_says_what_went_over(tmp_path, tokenizer_folder):
    end = load_tokenizer(tokenizer_folder).eos_token_ids[0]
    source = store(tmp_path / "s", [[end, 7, end], [end, end]], 300)
    arguments = ["data", "convert-tokens", str(source), str(tmp_path / "a.bin"), "--tokenizer", str(tokenizer_folder)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "a.bin: 1 documents, 2 tokens" in result.output
    assert "1 documents without tokens were left out" in result.output
    assert isinstance(CliRunner().invoke(cli, arguments).exception, DataError)
