"""Megatron's pairs of files, against bytes laid out by hand: what is read, what is written, what is refused."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import ArtifactError, DataError
from lmworks.data.tokens.megatron_store import MegatronFile, write_megatron
from lmworks.data.tokens.packing import PackedRows
from lmworks.data.tokens.token_files import documents, room

TYPES = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 8: "u2"}


def by_hand(folder, sequences, bounds, code=8, *, magic=b"MMIDIDX\0\0", version=1, offsets=None, modes=b""):
    """`x.idx` and `x.bin` as the published format has them."""
    width = np.dtype(TYPES.get(code, "u2")).itemsize
    lengths = [len(ids) for ids in sequences]
    if offsets is None:
        offsets = [sum(lengths[:n]) * width for n in range(len(lengths))]
    index = magic + struct.pack("<QBQQ", version, code, len(sequences), len(bounds))
    index += struct.pack(f"<{len(lengths)}i", *lengths) + struct.pack(f"<{len(offsets)}q", *offsets)
    (folder / "x.idx").write_bytes(index + struct.pack(f"<{len(bounds)}q", *bounds) + modes)
    flat = [i for ids in sequences for i in ids]
    (folder / "x.bin").write_bytes(
        np.asarray(flat, TYPES.get(code, "u2")).astype(f"<{TYPES.get(code, 'u2')}").tobytes()
    )
    return folder / "x.idx"


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("ending", [".idx", ".bin"])
def test_a_document_is_all_its_sequences(tmp_path, code, ending):
    file = by_hand(tmp_path, [[1, 2, 3], [4], [], [5, 6], [7]], [0, 1, 4, 4, 5], code)
    store = MegatronFile(file.with_suffix(ending))
    assert [ids.tolist() for ids in store] == [[1, 2, 3], [4, 5, 6], [], [7]]
    assert store.lengths.tolist() == [3, 3, 0, 1]
    assert store.num_tokens == 7
    assert [ids.tolist() for ids in documents([file.with_suffix(ending)], None, 100)] == [ids.tolist() for ids in store]
    assert room(file) == min(int(np.iinfo(TYPES[code]).max) + 1, 1 << 32)
    assert PackedRows(store, 7, 0).rows(0, 1).num_tokens == 7


def test_ids_below_nothing_leave_every_vocabulary(tmp_path):
    assert int(MegatronFile(by_hand(tmp_path, [[1, -2]], [0, 1], 4))[0].max()) == 2**32 - 2


@pytest.mark.parametrize("vocab_size", [65_499, 65_500])
def test_what_is_written_is_the_published_format(tmp_path, vocab_size):
    texts = [[5, 6, 0], [7, 0], [65_498, 0]]
    (tmp_path / "hand").mkdir()
    expected = by_hand(tmp_path / "hand", texts, [0, 1, 2, 3], 8 if vocab_size < 65_500 else 4)
    write_megatron(map(np.asarray, texts), tmp_path / "x.idx", vocab_size)
    for ending in (".idx", ".bin"):
        assert (tmp_path / f"x{ending}").read_bytes() == expected.with_suffix(ending).read_bytes()
    with pytest.raises(DataError, match="there already"):
        write_megatron([], tmp_path / "x.idx", 10)
    with pytest.raises(DataError, match="the id 70000 does not fit into 2 bytes"):
        write_megatron([np.asarray([70_000])], tmp_path / "y.idx", 10)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), max_size=9), max_size=8))
def test_any_documents_come_back(tmp_path_factory, texts):
    file = tmp_path_factory.mktemp("megatron") / "x.idx"
    write_megatron((np.asarray(ids, np.uint16) for ids in texts), file, 100)
    assert [ids.tolist() for ids in MegatronFile(file)] == texts


def test_more_tokens_than_31_bits_count(tmp_path):
    lengths = np.asarray([2**31 - 1, 2**31 - 1, 3], "<i4")
    ends = np.cumsum(lengths, dtype=np.int64)
    content = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, 3, 4) + lengths.tobytes()
    content += ((ends - lengths) * 2).tobytes() + np.arange(4).tobytes()
    (tmp_path / "x.idx").write_bytes(content)
    with (tmp_path / "x.bin").open("wb") as file:  # sparse: nearly nothing of it is on the device
        for place, value in ((2**31 - 2, 11), (2**31 - 1, 12), (2**32 - 2, 13), (2**32, 15)):
            file.seek(2 * place)
            file.write(struct.pack("<H", value))
    store = MegatronFile(tmp_path / "x.idx")
    assert (len(store), store.num_tokens) == (3, 2**32 + 1)
    assert (store[0][-1], store[1][0], store[2].tolist()) == (11, 12, [13, 0, 15])


DAMAGE = {
    "magic": ({"magic": b"RIFFIDX\0\0"}, ArtifactError, "does not begin as Megatron's"),
    "version": ({"version": 2}, ArtifactError, "has version 2, and 1 is known"),
    "numbers": ({"code": 7}, DataError, "type 7, which are no token ids"),
    "offsets": ({"offsets": [0, 6]}, ArtifactError, "do not lie one behind the other"),
    "bounds": ({"bounds": [0, 1, 3]}, ArtifactError, "do not ascend from 0 to 2"),
    "order": ({"bounds": [0, 2, 1, 2]}, ArtifactError, "do not ascend from 0 to 2"),
    "no bounds": ({"bounds": []}, ArtifactError, "do not ascend from 0 to 2"),
    "images": ({"modes": b"\0\1"}, DataError, "tells a mode of each sequence"),
    "longer": ({"modes": b"\0"}, ArtifactError, "has 83 bytes, and 2 sequences with 3 bounds take 82"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_files_of_another_kind_are_named(tmp_path, case):
    changes, error, message = DAMAGE[case]
    file = by_hand(tmp_path, **{"sequences": [[1, 2], [3]], "bounds": [0, 1, 2], **changes})
    with pytest.raises(error, match=message) as caught:
        MegatronFile(file)
    assert "x.idx" in str(caught.value)
    assert caught.value.remedy


def test_files_cut_off_anywhere_are_named(tmp_path):
    file = by_hand(tmp_path, [[1, 2], [3]], [0, 1, 2])
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"x\.idx"):
            MegatronFile(file)
    file.write_bytes(whole)
    tokens = file.with_suffix(".bin")
    for content in (b"\1\0\2\0", b"\1\0\2\0\3\0\4\0", b"\1\0\2\0\3"):
        tokens.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"x\.bin has \d bytes, its index says 6"):
            MegatronFile(file)
    tokens.unlink()
    with pytest.raises(ArtifactError, match=r"x\.bin is missing"):
        MegatronFile(file)


def test_a_file_without_documents_holds_none(tmp_path):
    assert len(MegatronFile(by_hand(tmp_path, [], [0]))) == 0
