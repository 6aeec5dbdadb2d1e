"""The tokenize stage on a tiny tokenizer of our own."""

import json

import pytest

from lmworks.core.errors import ArtifactError, DataError, TokenizerError
from lmworks.core.lineage import load_manifest, verify, write_artifact
from lmworks.data.tokens.packing import PackedRows
from lmworks.data.tokens.token_store import TokenStore
from lmworks.data.tokens.tokenize import TokenizeConfig, document_marks, tokenize
from lmworks.tokenization import load_tokenizer
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer

TRAIN = [
    "The sea was calm. <|endoftext|> is plain text here.",
    "Größe, 你好, 👩‍🚀.",
    "A third document about the sea.",
] * 5
VALIDATION = ["The held-out sea."]


def write_corpus(folder, train=TRAIN, validation=VALIDATION):
    with write_artifact(folder, "corpus", config={}) as writer:
        for name, texts in (("train", train), ("validation", validation)):
            rows = [{"id": str(n), "text": text, "source": "s", "license": "MIT"} for n, text in enumerate(texts)]
            (writer.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def made(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    train_tokenizer(TokenizerConfig(corpus=corpus, output=tmp_path / "tokenizer", vocab_size=300))
    return corpus, tmp_path / "tokenizer", tmp_path / "tokens"


def test_every_document_comes_back_between_its_marks(made):
    corpus, folder, output = made
    manifest = tokenize(TokenizeConfig(corpus=corpus, tokenizer=folder, output=output))
    tokenizer = load_tokenizer(folder)
    for split, texts in (("train", TRAIN), ("validation", VALIDATION)):
        store = TokenStore(output / split)
        assert len(store) == len(texts)
        for ids, text in zip((store[i].tolist() for i in range(len(store))), texts, strict=True):
            assert ids[0] == tokenizer.bos_token_id
            assert ids[-1] == tokenizer.bos_token_id
            assert tokenizer.bos_token_id not in ids[1:-1], "special text in a document stays text"
            assert tokenizer.decode(ids[1:-1]) == text
        assert store.num_bytes == sum(len(text.encode()) for text in texts)
        assert manifest.metrics[f"{split}_tokens"] == store.num_tokens
    assert {p.role: p.kind for p in manifest.parents} == {"corpus": "corpus", "tokenizer": "tokenizer"}
    assert manifest.notes["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert PackedRows(TokenStore(output / "train"), 16, 0).rows(0, 2).num_tokens == 32


def test_a_damaged_shard_is_found_by_the_manifest(made):
    corpus, folder, output = made
    tokenize(TokenizeConfig(corpus=corpus, tokenizer=folder, output=output))
    shard = output / "train" / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"changed \['train/shard-00000\.bin'\]"):
        verify(output)


def test_a_changed_or_empty_corpus_is_refused_and_nothing_is_written(made, tmp_path):
    corpus, folder, output = made
    (corpus / "train.jsonl").write_text("{}\n")
    with pytest.raises(ArtifactError, match="changed"):
        tokenize(TokenizeConfig(corpus=corpus, tokenizer=folder, output=output))
    empty = write_corpus(tmp_path / "empty", train=[])
    with pytest.raises(DataError, match="no training documents"):
        tokenize(TokenizeConfig(corpus=empty, tokenizer=folder, output=output))
    assert not output.exists()
    assert load_manifest(folder).kind == "tokenizer"


class Marks:
    def __init__(self, bos, eos):
        self.bos_token_id, self.eos_token_ids = bos, eos


def test_document_marks():
    assert document_marks(Marks(0, (0,))) == ([0], 0)
    assert document_marks(Marks(0, (2, 0))) == ([0], 0), "a turn's end is no document's end"
    assert document_marks(Marks(1, (2,))) == ([1], 2)
    assert document_marks(Marks(None, (2,))) == ([], 2)
    with pytest.raises(TokenizerError, match="no end-of-text token"):
        document_marks(Marks(1, ()))
