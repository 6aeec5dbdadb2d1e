"""Token shards: what is written is read, and damage is named."""

import numpy as np
import pytest

from lmworks.core.errors import ArtifactError, DataError
from lmworks.data.tokens.token_store import TokenStore, TokenStoreWriter

DOCUMENTS = [[0, 5, 6, 0], [0, 0], [0, *range(10, 30), 0], [0, 7, 0]]


def write(folder, documents=DOCUMENTS, vocab_size=100, tokens_per_shard=8):
    with TokenStoreWriter(folder, vocab_size, tokens_per_shard) as writer:
        writer.add((ids, len(ids) - 2) for ids in documents)
    return folder


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_documents_come_back_from_several_shards(tmp_path, vocab_size, dtype):
    folder = write(tmp_path / "train", vocab_size=vocab_size)
    store = TokenStore(folder)
    assert len(list(folder.glob("shard-*.bin"))) == 2
    assert [store[i].tolist() for i in range(len(store))] == DOCUMENTS
    assert store[0].dtype == np.dtype(dtype)
    assert store.lengths.tolist() == [4, 2, 22, 3]
    assert (store.num_tokens, store.num_bytes, store.vocab_size) == (31, 31 - 8, vocab_size)
    with pytest.raises(IndexError):
        store[4]


def test_the_largest_id_survives(tmp_path):
    assert TokenStore(write(tmp_path / "s", [[65_535]], 65_536))[0].tolist() == [65_535]


def test_an_empty_split_is_readable(tmp_path):
    store = TokenStore(write(tmp_path / "validation", []))
    assert len(store) == 0
    assert store.num_tokens == 0
    assert store.lengths.tolist() == []


@pytest.mark.parametrize("name", ["shard-00001.bin", "ends.bin"])
def test_a_truncated_file_is_named(tmp_path, name):
    file = write(tmp_path / "train") / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=rf"{name} has \d+ bytes, its index says \d+"):
        TokenStore(tmp_path / "train")


def test_a_missing_shard_is_named(tmp_path):
    (write(tmp_path / "train") / "shard-00000.bin").unlink()
    with pytest.raises(ArtifactError, match=r"shard-00000\.bin is missing"):
        TokenStore(tmp_path / "train")


def test_a_damaged_index_is_named(tmp_path):
    (write(tmp_path / "train") / "store.json").write_text('{"dtype": "uint16"')
    with pytest.raises(ArtifactError, match=r"store\.json is damaged"):
        TokenStore(tmp_path / "train")


def test_an_index_that_disagrees_with_the_ends_is_refused(tmp_path):
    file = write(tmp_path / "train") / "ends.bin"
    ends = np.fromfile(file, "<u8")
    ends[-1] += 1
    ends.tofile(file)
    with pytest.raises(ArtifactError, match=r"ends\.bin ends at 32"):
        TokenStore(tmp_path / "train")


def test_ends_that_do_not_ascend_or_cross_shards_are_refused(tmp_path):
    file = write(tmp_path / "train") / "ends.bin"  # the first shard holds 28 tokens, the second 3
    for ends in ([6, 4, 28, 31], [-1, 6, 28, 31], [4, 6, 27, 31], [4, 40, 28, 31]):
        np.asarray(ends, "<i8").tofile(file)
        with pytest.raises(ArtifactError, match=r"ends\.bin is damaged: the ends do not ascend from shard to shard"):
            TokenStore(tmp_path / "train")


def test_an_index_with_another_type_than_its_vocabulary_is_refused(tmp_path):
    file = write(tmp_path / "train") / "store.json"
    file.write_text(file.read_text().replace('"vocab_size": 100', '"vocab_size": 100000'))
    with pytest.raises(ArtifactError, match="100000 ids are not stored as uint16"):
        TokenStore(tmp_path / "train")


def test_the_artifact_folder_itself_is_explained(tmp_path):
    write(tmp_path / "train")
    with pytest.raises(ArtifactError, match="Give one of its splits"):
        TokenStore(tmp_path)


@pytest.mark.parametrize("ids", [[100], [-1], []])
def test_documents_that_cannot_be_stored_are_refused(tmp_path, ids):
    with pytest.raises(DataError, match="document 0"):
        write(tmp_path / "train", [ids])
    with pytest.raises(ArtifactError):  # and the store stays unreadable
        TokenStore(tmp_path / "train")
