"""GGUF containers: every format decodes and encodes as the `gguf` package does, and damage is named."""

import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import CheckpointError
from lmworks.core.gguf import GGUFFile
from lmworks.core.gguf_blocks import FORMATS

HALVES = {
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip
"""Where in a block its float16 scales lie: they have to be numbers, every other byte may be anything."""


def random_blocks(form, rows, rng):
    raw = rng.integers(0, 256, (rows, form.size * max(1, 256 // form.weights)), dtype=np.uint8)
    blocks = raw.reshape(-1, form.size)
    for at in HALVES.get(form.name, ()):
        scales = rng.uniform(-1, 1, len(blocks)) * 10.0 ** rng.integers(-7, 5, len(blocks))
        blocks[:, at : at + 2] = scales.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return raw


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float32("pi", 3.25)
    writer.add_float32("eps", 1e-5)
    writer.add_bool("yes", True)
    writer.add_array("words", ["a", "Ġthe", ""])
    writer.add_array("numbers", [1, -2, 3])
    for kind, form in FORMATS.items():
        raw = random_blocks(form, 16, rng)
        if form.name in ("F32", "F16", "BF16"):
            raw = gguf.quantize(rng.standard_normal((16, 256), dtype=np.float32), gguf.GGMLQuantizationType(kind))
        raw_dtype = None if raw.dtype in (np.float32, np.float16) else gguf.GGMLQuantizationType(kind)
        writer.add_tensor(f"t.{form.name}", raw, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_is_typed(file):
    metadata = GGUFFile(file).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 3
    assert metadata["pi"] == 3.25
    assert metadata["eps"] == 1e-5  # the number that was meant, not float32's nearest
    assert metadata["yes"] is True
    assert metadata["words"] == ["a", "Ġthe", ""]
    assert metadata["numbers"] == [1, -2, 3]


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda f: f.name)
def test_every_format_decodes_to_the_same_bits(file, form):
    opened = GGUFFile(file)
    theirs = next(t for t in gguf.GGUFReader(file).tensors if t.name == f"t.{form.name}")
    expected = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
    decoded = opened.tensor(theirs.name)
    assert opened.format(theirs.name) == form.name
    assert opened.shape(theirs.name) == decoded.shape == expected.shape == tuple(theirs.shape[::-1])
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("form", [f for f in FORMATS.values() if f.encode], ids=lambda f: f.name)
def test_what_is_written_is_encoded_to_the_same_bytes(form):
    rng = np.random.default_rng(1)
    values = (rng.standard_normal((64, 64)) * 10.0 ** rng.integers(-6, 4, (64, 1))).astype(np.float32)
    values[0, :32] = 0
    values[1, :8] = np.array([127, 0.5, -0.5, 1.5, -1.5, 2.5, np.nextafter(np.float32(0.5), 0), -127])  # ties in Q8_0
    ours = form.encode(values.reshape(-1, form.weights)).reshape(64, -1)
    expected = gguf.quantize(values, gguf.GGMLQuantizationType[form.name])
    np.testing.assert_array_equal(ours, expected.view(np.uint8))


def test_bfloat16_keeps_what_is_no_number():
    odd = np.array([[np.nan], [np.inf], [-np.inf], [3e38], [0.0]], dtype=np.float32)
    bf16 = FORMATS[30]
    decoded = bf16.decode(bf16.encode(odd))
    assert np.isnan(decoded[0, 0])
    assert decoded[1:3, 0].tolist() == [np.inf, -np.inf]
    assert decoded[3, 0] == pytest.approx(3e38, rel=0.01)


def test_decoded_tensors_are_independent_of_the_file(file):
    tensor = GGUFFile(file).tensor("t.F32")
    tensor[:] = 1  # a view of the read-only map would raise
    assert GGUFFile(file).tensor("t.F32")[0, 0] != 1


@pytest.fixture(scope="module")
def whole(file):
    opened = GGUFFile(file)
    last = opened._tensors[opened.tensor_names[-1]]
    return file.read_bytes()[: last.offset + last.size]  # without padding, which nobody would miss


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_truncation_is_named(whole, tmp_path_factory, data):
    header = whole.index(b"t.F32")
    keep = data.draw(st.one_of(st.integers(0, header), st.integers(0, len(whole) - 1)))
    cut = tmp_path_factory.getbasetemp() / "cut.gguf"
    cut.write_bytes(whole[:keep])
    with pytest.raises(CheckpointError, match=r"truncated|cannot read|does not begin|damaged"):
        GGUFFile(cut)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_damage_is_named_and_allocates_little(whole, tmp_path_factory, data):
    header = whole.index(b"t.Q6_K") + 60
    at = data.draw(st.integers(0, header))
    junk = data.draw(st.one_of(st.binary(min_size=1, max_size=9), st.just(b"\xff" * 8), st.just(b"\0" * 8)))
    bad = tmp_path_factory.getbasetemp() / "bad.gguf"
    bad.write_bytes(whole[:at] + junk + whole[at + len(junk) :])
    tracemalloc.start()
    try:
        GGUFFile(bad)  # harmless damage, such as to a name, opens
    except CheckpointError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 30 * len(whole)


def header(version=3, tensors=0, values=0):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def tensor(kind, shape, offset=0):
    return struct.pack("<Q1sI", 1, b"x", len(shape)) + struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)


def value(kind, content=b""):
    return struct.pack("<Q1sI", 1, b"k", kind) + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(40), "does not begin with"),
        (header(version=1), "GGUF version 1"),
        (header(version=0x03000000), "little-endian"),
        (header(values=2**60), "a count of"),
        (header(tensors=2**60) + bytes(64), "a count of"),
        (header(values=1) + value(9, struct.pack("<IQ", 8, 2**61)) + bytes(64), "a count of"),
        (header(values=1) + value(9, struct.pack("<IQ", 10, 60)) + bytes(64), "truncated"),
        (header(tensors=1) + tensor(16, [256]), r"tensor 'x' is of GGML type IQ2_XXS, which is not read.*Q4_K_M"),
        (header(tensors=1) + tensor(99, [32]), "GGML type 99"),
        (header(tensors=1) + tensor(2, [33]), "does not fit Q4_0 blocks"),
        (header(tensors=1) + tensor(0, [4], offset=2**62) + bytes(64), "truncated"),
        (header(tensors=1) + tensor(0, [2**62, 2**62]) + bytes(64), "truncated"),
        (header(tensors=1) + tensor(0, [1, 1, 1, 1, 1]), "5 dimensions"),
        (header(tensors=2) + tensor(0, [1]) * 2 + bytes(64), "twice"),
        (header(values=2) + value(4, bytes(4)) * 2 + bytes(64), "the key 'k' twice"),
        (header(values=1) + value(99) + bytes(64), "unknown metadata type 99"),
        (header(values=1) + struct.pack("<Q1s", 1, b"\xff") + bytes(64), "invalid text"),
        (header(values=1) + value(9) + struct.pack("<IQ", 9, 1) * 9 + bytes(64), "metadata type 9"),
    ],
)
def test_damage_is_named(tmp_path, content, message):
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        GGUFFile(tmp_path / "bad.gguf")


def test_unknown_tensor(file):
    with pytest.raises(CheckpointError, match="has no tensor 'absent'"):
        GGUFFile(file).shape("absent")
