"""Token files of other programs, checked against datatrove itself where it is installed, and stores at URLs."""

import io
import os
import pickle
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import ArtifactError, DataError
from lmworks.core.lineage import write_artifact
from lmworks.data.tokens import streaming
from lmworks.data.tokens.bin_files import read_bin
from lmworks.data.tokens.datatrove_store import DatatroveFile, write_datatrove
from lmworks.data.tokens.megatron_store import MegatronFile, write_megatron
from lmworks.data.tokens.packing import PackedRows
from lmworks.data.tokens.streaming import StreamedTokenStore
from lmworks.data.tokens.token_files import documents
from lmworks.data.tokens.token_store import TokenStore, TokenStoreWriter

DOCUMENTS = [[5, 6, 0], [7, 0], [*range(10, 30), 0], [8, 0]]


def store(folder, texts=DOCUMENTS, vocab_size=100, tokens_per_shard=8):
    with TokenStoreWriter(folder, vocab_size, tokens_per_shard) as writer:
        writer.add((ids, len(ids)) for ids in texts)
    return TokenStore(folder)


@pytest.mark.parametrize(("vocab_size", "width"), [(65_536, 2), (65_537, 4)])
def test_what_datatrove_reads_is_what_was_written(tmp_path, vocab_size, width):
    from datatrove.utils import dataset

    write_datatrove(store(tmp_path / "s", vocab_size=vocab_size), tmp_path / "a.ds", vocab_size)
    flat = [i for ids in DOCUMENTS for i in ids]
    theirs = dataset.DatatroveFileDataset(str(tmp_path / "a.ds"), seq_len=6, token_size=width, return_positions=True)
    assert len(theirs) == len(flat) // 7
    assert theirs[0]["input_ids"].tolist() == flat[:7]
    assert theirs[0]["positions"].tolist() == [0, 1, 2, 0, 1, 0, 1]
    again = DatatroveFile(tmp_path / "a.ds")
    assert [again[i].tolist() for i in range(len(again))] == DOCUMENTS
    assert again.lengths.tolist() == [3, 2, 21, 2]
    assert again[0].dtype.itemsize == width


@pytest.mark.parametrize("width", [2, 4])
def test_what_datatrove_writes_is_read(tmp_path, width):
    from datatrove.pipeline.tokens import tokenizer as tokens

    theirs = tokens.TokenizedFile(str(tmp_path), "b.ds", token_size=width, save_final_metadata=True)
    for ids in DOCUMENTS:
        theirs.write(ids, None)
    theirs.close()
    mine = DatatroveFile(tmp_path / "b.ds")
    assert [mine[i].tolist() for i in range(len(mine))] == DOCUMENTS
    write_datatrove(mine, tmp_path / "c.ds", 1 << 8 * width)
    for ending in ("", ".index", ".metadata"):
        # Before the bar stands the tokenizer's name.
        ours, wrote = ((tmp_path / f"{name}.ds{ending}").read_bytes().split(b"|")[-1] for name in "cb")
        assert ours == wrote


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), max_size=8))
def test_any_documents_come_back(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("ds")
    write_datatrove(store(folder / "s", texts), folder / "a.ds", 100)
    mine = DatatroveFile(folder / "a.ds")
    assert [mine[i].tolist() for i in range(len(mine))] == texts


def test_workers_open_the_files_themselves(remote, tmp_path):
    many = store(tmp_path / "s", [[1] * 5000] * 20)
    write_datatrove(many, tmp_path / "a.ds", 100)
    write_megatron(many, tmp_path / "a.idx", 100)
    far = StreamedTokenStore("memory://bucket/tokens/train", tmp_path / "c", max_shards=1)
    for opened in (many, DatatroveFile(tmp_path / "a.ds"), MegatronFile(tmp_path / "a.idx"), far):
        sent = pickle.dumps(opened)
        assert len(sent) < 1000
        assert [ids.tolist() for ids in pickle.loads(sent)] == [ids.tolist() for ids in opened]


def test_foreign_files_are_packed_as_stores_are(tmp_path):
    ours = store(tmp_path / "s")
    write_datatrove(ours, tmp_path / "a.ds", 100)
    rows = [PackedRows(s, sequence_length=8, seed=1).rows(0, 3) for s in (ours, DatatroveFile(tmp_path / "a.ds"))]
    assert rows[0].input_ids.tolist() == rows[1].input_ids.tolist()


@pytest.mark.parametrize("damage", ["tokens", "index", "order", "missing"])
def test_damaged_datatrove_files_are_named(tmp_path, damage):
    write_datatrove(store(tmp_path / "s"), tmp_path / "a.ds", 100)
    tokens, index = tmp_path / "a.ds", tmp_path / "a.ds.index"
    match damage:
        case "tokens":
            tokens.write_bytes(tokens.read_bytes()[:-2])
        case "index":
            index.write_bytes(index.read_bytes()[:-1])
        case "order":
            index.write_bytes(index.read_bytes()[8:16] + index.read_bytes())
        case "missing":
            index.unlink()
    with pytest.raises(ArtifactError, match=r"a\.ds"):
        DatatroveFile(tokens)


@pytest.mark.parametrize("marks_first", [True, False])
@pytest.mark.parametrize("header", [True, False])
def test_bin_files_are_cut_at_their_marks(tmp_path, marks_first, header):
    texts = [[9, 1, 2], [9, 3], [9, 4, 4]] if marks_first else [[1, 2, 9], [3, 9], [4, 4]]
    flat = [i for ids in texts for i in ids]
    head = struct.pack("<256i", 20240520, 1, len(flat), *[0] * 253) if header else b""
    (tmp_path / "x.bin").write_bytes(head + np.asarray(flat, "<u2").tobytes())
    assert [ids.tolist() for ids in read_bin(tmp_path / "x.bin", 9, 50_257)] == texts
    if header:
        (tmp_path / "x.bin").write_bytes(head + b"\0\0")
        with pytest.raises(ArtifactError, match="header counts"):
            list(read_bin(tmp_path / "x.bin", 9, 50_257))


def test_unknown_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"x\.npy"):
        list(documents([tmp_path / "x.npy"], None, 100))
    with pytest.raises(ArtifactError, match=r"x\.bin has 0 bytes"):
        list(documents([tmp_path / "x.bin"], 9, 100))
    with pytest.raises(DataError, match=r"new \.ds file"):
        write_datatrove(store(tmp_path / "s"), tmp_path / "a.bin", 100)


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A tokens artifact in a storage that only fsspec reads."""
    import fsspec

    monkeypatch.setattr(streaming, "WAITS", (0.0, 0.0))

    with write_artifact(tmp_path / "tokens", "tokens", config={}) as writer:
        store(writer.folder / "train")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "tokens"), "/bucket/tokens", recursive=True)
    yield memory
    memory.rm("/bucket", recursive=True)


def test_a_store_at_a_url_reads_as_one_here(remote, tmp_path):
    far, near = (
        StreamedTokenStore("memory://bucket/tokens/train", tmp_path / "c"),
        TokenStore(tmp_path / "tokens/train"),
    )
    assert not list((tmp_path / "c").glob("shard-*"))
    assert far[3].tolist() == DOCUMENTS[3]
    assert [f.name for f in (tmp_path / "c").glob("shard-*")] == ["shard-00001.bin"]
    assert [far[i].tolist() for i in range(len(far))] == DOCUMENTS
    assert far.lengths.tolist() == near.lengths.tolist()
    a, b = (PackedRows(s, sequence_length=8, seed=3).rows(0, 5) for s in (far, near))
    assert a.input_ids.tolist() == b.input_ids.tolist()


def test_a_warm_cache_needs_no_storage_for_shards_and_is_checked(remote, tmp_path):
    first = StreamedTokenStore("memory://bucket/tokens/train", tmp_path / "c")
    assert first[0].tolist() == DOCUMENTS[0]
    remote.rm("/bucket/tokens/train/shard-00000.bin")
    assert StreamedTokenStore("memory://bucket/tokens/train", tmp_path / "c")[0].tolist() == DOCUMENTS[0]
    (tmp_path / "c" / "shard-00000.bin").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="cannot be read"):
        StreamedTokenStore("memory://bucket/tokens/train", tmp_path / "c")[0]


def test_a_bounded_cache_forgets_the_oldest_shard(remote, tmp_path):
    far = StreamedTokenStore("memory://bucket/tokens/train", tmp_path / "c", max_shards=1)
    kept = far[0]
    for i in (3, 0, 3, 2, 1):
        assert far[i].tolist() == DOCUMENTS[i]
        assert len(list((tmp_path / "c").glob("shard-*"))) == 1
    assert kept.tolist() == DOCUMENTS[0]


def test_damage_on_the_way_is_refused(remote, tmp_path):
    with remote.open("/bucket/tokens/train/shard-00001.bin", "wb") as file:
        file.write(b"\0" * 46)
    far = StreamedTokenStore("memory://bucket/tokens/train", tmp_path / "c")
    with pytest.raises(ArtifactError, match="does not match its manifest"):
        far[3]
    assert not list((tmp_path / "c").glob("shard-*"))


class Fails:
    """Opens files that break when opened, when read, or end early; after some openings all is well."""

    def __init__(self, storage, how, times):
        self.storage, self.how, self.left = storage, how, times

    def open(self, path, mode):
        file = self.storage.open(path, mode)
        if not self.left or not path.endswith("shard-00001.bin"):
            return file
        self.left -= 1
        if self.how == "refused":
            raise FileNotFoundError(path) from ConnectionResetError("by peer")  # as fsspec has it of HTTP
        parts = iter([file.read()[:3], b""])
        broken = io.BytesIO()
        broken.read = lambda _: next(parts) if self.how == "short" else fail(TimeoutError("30 s"))
        return broken


def fail(error):
    raise error


@pytest.mark.parametrize("how", ["refused", "broken", "short"])
def test_what_fails_for_a_while_is_asked_for_again(remote, tmp_path, how):
    far = StreamedTokenStore("memory://bucket/tokens/train", tmp_path / "c")
    far._storage = Fails(remote, how, 2)
    assert far[3].tolist() == DOCUMENTS[3]
    assert far._storage.left == 0
    other = StreamedTokenStore("memory://bucket/tokens/train", tmp_path / "d")
    other._storage = Fails(remote, how, 99)
    message = {
        "refused": "ConnectionResetError: by peer",
        "broken": "TimeoutError: 30 s",
        "short": "changed or damaged",
    }
    with pytest.raises(ArtifactError, match=message[how]):
        other[3]
    assert not list((tmp_path / "d").glob("shard-*"))


def test_a_store_that_was_replaced_meanwhile_is_not_mixed_with_the_old(remote, tmp_path):
    far = StreamedTokenStore("memory://bucket/tokens/train", tmp_path / "c")
    with write_artifact(tmp_path / "new", "tokens", config={}) as writer:
        store(writer.folder / "train", [[1, 2, 0], *DOCUMENTS[1:3], [9, 0]])
    remote.put(str(tmp_path / "new") + "/", "/bucket/tokens/", recursive=True)
    with pytest.raises(ArtifactError, match="changed or damaged"):
        far[0]
    assert StreamedTokenStore("memory://bucket/tokens/train", tmp_path / "c")[0].tolist() == [1, 2, 0]


def test_what_an_earlier_run_left_in_the_cache_is_bounded_too(remote, tmp_path):
    whole = StreamedTokenStore("memory://bucket/tokens/train", tmp_path / "c")
    assert [ids.tolist() for ids in whole] == DOCUMENTS
    assert len(list((tmp_path / "c").glob("shard-*"))) == 2
    for age, name in ((2 * 3600, "shard-00001.bin.7.partial"), (0, "shard-00001.bin.8.partial")):
        (tmp_path / "c" / name).write_bytes(b"half")
        os.utime(tmp_path / "c" / name, (time.time() - age,) * 2)
    bounded = StreamedTokenStore("memory://bucket/tokens/train", tmp_path / "c", max_shards=1)
    assert bounded[0].tolist() == DOCUMENTS[0]
    assert sorted(f.name for f in (tmp_path / "c").glob("shard-*")) == ["shard-00000.bin", "shard-00001.bin.8.partial"]


def test_processes_may_share_a_cache(remote, tmp_path, monkeypatch):
    far = StreamedTokenStore("memory://bucket/tokens/train", tmp_path / "c", max_shards=1)
    utime, gone = os.utime, []

    def as_another_makes_room(file):
        if not gone:
            gone.append(file)
            file.unlink()
        utime(file)

    monkeypatch.setattr(streaming.os, "utime", as_another_makes_room)
    assert far[3].tolist() == DOCUMENTS[3]
    assert gone


@pytest.mark.parametrize("url", ["memory://bucket/none/train", "nosuch://x/train", "memory://bucket/tokens/test"])
def test_addresses_without_a_store_are_named(remote, tmp_path, url):
    with pytest.raises(ArtifactError, match=url):
        StreamedTokenStore(url, tmp_path / "c")
