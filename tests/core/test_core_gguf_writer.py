"""Written GGUF files are read by the `gguf` package and by us, and appear whole or not at all."""

import resource

import gguf
import numpy as np
import pytest

from lmworks.core.errors import DiskFullError
from lmworks.core.gguf import GGUFFile
from lmworks.core.gguf_writer import TensorToWrite, write_gguf

METADATA = {
    "general.architecture": "llama", "yes": True, "small": 7, "negative": -7, "large": 2**40, "eps": 1e-5,
    "text": "Ġthe\n", "words": ["a", "Ġ", ""], "types": [1, -3, 1], "flags": [True, False], "scores": [0.5, -1.0],
}  # fmt: skip


def tensor(name, shape, form, rng):
    values = rng.standard_normal(shape, dtype=np.float32)
    return TensorToWrite(name, shape, form, lambda: values), values


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    rows = [("a", (3, 5), "F32"), ("b", (7,), "F16"), ("c.weight", (2, 3, 5), "BF16"), ("d", (4, 64), "Q8_0")]
    return [tensor(*row, rng) for row in rows]


def test_both_readers_read_it(tmp_path, tensors):
    file = tmp_path / "t.gguf"
    write_gguf(file, METADATA, [t for t, _ in tensors])
    theirs, ours = gguf.GGUFReader(file), GGUFFile(file)
    read = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert read.pop("eps") == np.float32(1e-5)
    assert read == {key: value for key, value in METADATA.items() if key != "eps"}
    assert ours.metadata == METADATA
    kinds = {field.name: field.types for field in theirs.fields.values()}
    assert kinds["small"] == [gguf.GGUFValueType.UINT32]
    assert kinds["types"] == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]
    for (written, values), read_back in zip(tensors, theirs.tensors, strict=True):
        assert (read_back.name, read_back.tensor_type.name) == (written.name, written.format)
        assert ours.shape(written.name) == written.shape
        decoded = gguf.dequantize(read_back.data, read_back.tensor_type).reshape(written.shape)
        np.testing.assert_array_equal(ours.tensor(written.name), decoded)
        np.testing.assert_allclose(decoded, values, atol=0 if written.format == "F32" else 0.02)


def test_nothing_is_left_behind_by_a_failure(tmp_path, tensors):
    file = tmp_path / "t.gguf"
    file.write_bytes(b"the model that was here")

    def fail():
        raise RuntimeError("no such tensor")

    broken = TensorToWrite("e", (2,), "F32", fail)
    with pytest.raises(RuntimeError, match="no such tensor"):
        write_gguf(file, METADATA, [*(t for t, _ in tensors), broken])
    assert file.read_bytes() == b"the model that was here"
    assert list(tmp_path.iterdir()) == [file]


def test_full_disk(tmp_path, tensors):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(DiskFullError, match=r"t.gguf failed: File too large"):
            write_gguf(tmp_path / "t.gguf", METADATA, [t for t, _ in tensors])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
