"""GGUF containers: every format decodes as the `gguf` package does, and damage is named."""

import struct

import gguf
import numpy as np
import pytest

from lmworks.core.errors import CheckpointError
from lmworks.core.gguf import GGUFFile
from lmworks.core.gguf_blocks import FORMATS


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float32("pi", 3.25)
    writer.add_bool("yes", True)
    writer.add_array("words", ["a", "Ġthe", ""])
    writer.add_array("numbers", [1, -2, 3])
    for kind, form in FORMATS.items():
        # Scales are among the random bytes: keep them small and finite by allowing only a few exponents.
        raw = rng.integers(0, 56, (6, form.size * max(1, 256 // form.weights)), dtype=np.uint8)
        dtype = {0: np.float32, 1: np.float16}.get(kind)
        array = raw.view(dtype) if dtype else raw
        writer.add_tensor(f"t.{form.name}", array, raw_dtype=None if dtype else gguf.GGMLQuantizationType(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf"


def test_metadata_is_typed(file):
    metadata = GGUFFile(file).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 3
    assert metadata["pi"] == 3.25
    assert metadata["yes"] is True
    assert metadata["words"] == ["a", "Ġthe", ""]
    assert metadata["numbers"] == [1, -2, 3]


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda f: f.name)
def test_every_format_decodes_exactly(file, form):
    opened = GGUFFile(file)
    theirs = next(t for t in gguf.GGUFReader(file).tensors if t.name == f"t.{form.name}")
    expected = gguf.dequantize(theirs.data, theirs.tensor_type)
    decoded = opened.tensor(theirs.name)
    assert opened.format(theirs.name) == form.name
    assert opened.shape(theirs.name) == decoded.shape == expected.shape == tuple(theirs.shape[::-1])
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, expected)


def test_decoded_tensors_are_independent_of_the_file(file):
    tensor = GGUFFile(file).tensor("t.F32")
    tensor[:] = 1  # a view of the read-only map would raise
    assert GGUFFile(file).tensor("t.F32")[0, 0] != 1


def test_any_truncation_is_named(file, tmp_path):
    whole = file.read_bytes()
    for keep in [0, 3, 8, 20, 60, 150, len(whole) // 2, len(whole) - 40]:
        (tmp_path / "cut.gguf").write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match=r"truncated|cannot read|does not begin|damaged"):
            GGUFFile(tmp_path / "cut.gguf")


def header(version=3, tensors=0, values=0):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def tensor(kind, shape, offset=0):
    return struct.pack("<Q1sI", 1, b"x", len(shape)) + struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(40), "does not begin with"),
        (header(version=1), "GGUF version 1"),
        (header(version=0x03000000), "little-endian"),
        (header(values=2**60), "a count of"),
        (header(tensors=1) + tensor(39, [32]), "GGML type 39"),
        (header(tensors=1) + tensor(2, [33]), "does not fit Q4_0 blocks"),
        (header(tensors=1) + tensor(0, [4], offset=2**62) + bytes(64), "truncated"),
        (header(tensors=1) + tensor(0, [1, 1, 1, 1, 1]), "5 dimensions"),
        (header(tensors=2) + tensor(0, [1]) * 2 + bytes(64), "twice"),
        (header(values=1) + struct.pack("<Q1sI", 1, b"k", 99) + bytes(64), "unknown metadata type 99"),
        (header(values=1) + struct.pack("<Q1s", 1, b"\xff") + bytes(64), "invalid text"),
        (
            header(values=1) + struct.pack("<Q1sI", 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 9 + bytes(64),
            "metadata type 9",
        ),
    ],
)
def test_damage_is_named(tmp_path, content, message):
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        GGUFFile(tmp_path / "bad.gguf")


def test_unknown_tensor(file):
    with pytest.raises(CheckpointError, match="has no tensor 'absent'"):
        GGUFFile(file).shape("absent")
