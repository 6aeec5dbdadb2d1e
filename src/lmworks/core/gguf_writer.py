"""Write a GGUF file, version 3: typed metadata and named tensors, one tensor in memory at a time.

Knows no model and no tokenizer. The file appears whole or not at all: it is written under a temporary name
beside its place, flushed to the device and renamed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lmworks.core.errors import disk_errors
from lmworks.core.gguf import ALIGNMENT, MAGIC
from lmworks.core.gguf_blocks import FORMATS, BlockFormat
from lmworks.core.lineage import sync_folder

VERSION = 3
_FORMATS_BY_NAME = {form.name: (kind, form) for kind, form in FORMATS.items()}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_INTEGERS = ((4, "<I", 0, 2**32), (5, "<i", -(2**31), 2**31), (10, "<Q", 0, 2**64), (11, "<q", -(2**63), 2**63))
"""Type number, code and range of the integers, the one to prefer first."""


@dataclass(frozen=True)
class TensorToWrite:
    """One tensor of a file to be written."""

    name: str
    shape: tuple[int, ...]
    """Row-major; 1 to 4 dimensions."""
    format: str
    """A format that can be written: F32, F16, BF16 or Q8_0."""
    read: Callable[[], NDArray[np.float32]]
    """Called once, when it is this tensor's turn."""

    @property
    def size(self) -> int:
        """Bytes in the file, without padding."""
        form = self._form[1]
        return int(np.prod(self.shape)) // form.weights * form.size

    @property
    def kind(self) -> int:
        """GGML type number."""
        return self._form[0]

    @property
    def _form(self) -> tuple[int, BlockFormat]:
        return _FORMATS_BY_NAME[self.format]

    def encoded(self) -> bytes:
        """The tensor's bytes."""
        form, values = self._form[1], self.read()
        assert values.shape == self.shape, f"{self.name}: announced {self.shape}, read {values.shape}"
        assert form.encode is not None, f"{form.name} is only read"
        return form.encode(np.ascontiguousarray(values, dtype=np.float32).reshape(-1, form.weights)).tobytes()


def write_gguf(path: Path | str, metadata: Mapping[str, Any], tensors: Sequence[TensorToWrite]) -> None:
    """Write a file.

    Args:
        path: replaced if it exists; its folder must exist.
        metadata: values are `bool`, `int` (written unsigned where possible, in 32 bits where they fit), `float` (32
            bits), `str`, or a list of one of these; lists of integers are signed.
        tensors: in file order, with different names; the last dimension is a whole number of blocks.

    Raises:
        DiskFullError: the device is full; whatever was at `path` is still there.
        OSError: the file cannot be written for another reason.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            with temporary.open("wb") as sink:
                _write(sink, metadata, tensors)
                sink.flush()
                os.fsync(sink.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _write(sink: BinaryIO, metadata: Mapping[str, Any], tensors: Sequence[TensorToWrite]) -> None:
    header = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    header += [_string(key) + _typed(value) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]  # the file begins with the dimension that is contiguous
        header.append(_string(tensor.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.kind, offset))
        offset += tensor.size + _padding(tensor.size)
    start = b"".join(header)
    sink.write(start + bytes(_padding(len(start))))
    for tensor in tensors:
        data = tensor.encoded()
        assert len(data) == tensor.size
        sink.write(data + bytes(_padding(len(data))))


def _typed(value: Any) -> bytes:
    """Type number and bytes of a metadata value."""
    if not isinstance(value, (list, tuple)):
        kind, raw = _scalar(value)
        return struct.pack("<I", kind) + raw
    assert value, "an empty list has no type"
    if isinstance(value[0], int) and not isinstance(value[0], bool):
        kind, items = 5, struct.pack(f"<{len(value)}i", *value)
    else:
        pairs = [_scalar(item) for item in value]
        kind, items = pairs[0][0], b"".join(raw for _, raw in pairs)
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + items


def _scalar(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, str):
        return _STRING, _string(value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    assert isinstance(value, int), f"GGUF has no type for {value!r}"
    kind, code = next((kind, code) for kind, code, low, end in _INTEGERS if low <= value < end)
    return kind, struct.pack(code, value)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _padding(size: int) -> int:
    return -size % ALIGNMENT
