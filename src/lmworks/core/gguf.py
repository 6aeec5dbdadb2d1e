"""Read a GGUF file: typed metadata and named tensors, memory mapped. Knows no model and no tokenizer.

Versions 2 and 3, little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Every length
in the file is checked against the file's size, so a truncated or hostile file is a named error.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmworks.core.errors import CheckpointError
from lmworks.core.gguf_blocks import FORMATS, OTHER_TYPES, BlockFormat
from lmworks.core.gguf_grids import GRIDS, BlockGrid, Split

MAGIC = b"GGUF"
ALIGNMENT = 32
"""Of tensor data, unless `general.alignment` says otherwise."""
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_NESTING = 4


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies."""

    shape: tuple[int, ...]
    """Row-major: the last dimension is contiguous (the file stores the reverse)."""
    format: BlockFormat
    offset: int
    """Bytes from the beginning of the file."""
    size: int
    """Bytes."""


class GGUFFile:
    """An open GGUF file; tensors are decoded when asked for.

    Args:
        path: the `.gguf` file.

    Raises:
        CheckpointError: not a GGUF file, damaged, truncated, or of an unsupported version or tensor type.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._data = np.memmap(self.path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {self.path}: {error}", "Give the path of a GGUF file") from None
        cursor = _Cursor(self.path, self._data)
        if cursor.take(4) != MAGIC:
            raise CheckpointError(f"{self.path} does not begin with {MAGIC!r}", "Give the path of a GGUF file")
        self.version = int(cursor.scalar("<I"))
        if self.version not in (2, 3):
            raise CheckpointError(
                f"{self.path} has GGUF version {self.version}; versions 2 and 3, little-endian, are read",
                "Convert the model anew with a current llama.cpp",
            )
        num_tensors, num_values = cursor.count(), cursor.count()
        self.metadata: dict[str, Any] = {}
        for _ in range(num_values):
            if (key := cursor.string()) in self.metadata:
                raise CheckpointError(f"{self.path} is damaged: it holds the key {key!r} twice", "Download it again")
            self.metadata[key] = cursor.value(int(cursor.scalar("<I")))
        headers = [self._header(cursor) for _ in range(num_tensors)]
        self._tensors = self._place(headers, cursor.position)

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names in file order."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Row-major shape of a tensor."""
        return self._info(name).shape

    def format(self, name: str) -> str:
        """The tensor's storage type, e.g. `Q4_1`."""
        return self._info(name).format.name

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The tensor decoded to float32, in a fresh array."""
        info = self._info(name)
        return info.format.decode(self._blocks(info)).reshape(info.shape)

    def grid_format(self, name: str) -> BlockGrid | None:
        """How a matrix reads as integers; None for vectors and formats that do not."""
        info = self._tensors.get(name)
        return None if info is None or len(info.shape) != 2 else GRIDS.get(info.format.name)

    def grid(self, name: str) -> Split:
        """A matrix that has a grid format: values [out, in], scales and zeros [out, groups], in fresh arrays."""
        info, form = self._info(name), self.grid_format(name)
        assert form is not None
        values, scale, zero = form.split(self._blocks(info))
        groups = (info.shape[0], info.shape[1] // form.group_size)
        shifts = None if zero is None else zero.reshape(groups)
        return values.reshape(info.shape).copy(), scale.reshape(groups), shifts

    def _blocks(self, info: TensorInfo) -> NDArray[np.uint8]:
        raw = np.asarray(self._data[info.offset : info.offset + info.size])
        return raw.reshape(-1, info.format.size)

    def _info(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} has no tensor {name!r}", "Use a complete GGUF file")
        return self._tensors[name]

    def _header(self, cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
        """Name, row-major shape, type number and offset within the data section."""
        name, num_dims = cursor.string(), int(cursor.scalar("<I"))
        if num_dims > 4:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has {num_dims} dimensions, GGUF allows 4", "Re-download it"
            )
        shape = tuple(int(cursor.scalar("<Q")) for _ in range(num_dims))[::-1]
        return name, shape, int(cursor.scalar("<I")), int(cursor.scalar("<Q"))

    def _place(self, headers: list[tuple[str, tuple[int, ...], int, int]], end: int) -> dict[str, TensorInfo]:
        """Check every tensor's type, shape and extent."""
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise CheckpointError(
                f"{self.path}: general.alignment is {alignment!r}, not a positive number", "Re-download it"
            )
        start = -(-end // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in headers:
            form = FORMATS.get(kind)
            if form is None:
                known = ", ".join(f.name for f in FORMATS.values())
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} is of GGML type {OTHER_TYPES.get(kind, kind)}, which is not read; "
                    f"read are {known}",
                    "Use a file of one of these types, such as Q4_K_M or Q8_0, or the model's Hugging Face folder",
                )
            weights = math.prod(shape)
            if not shape or shape[-1] % form.weights:
                raise CheckpointError(
                    f"{self.path}: tensor {name!r} of shape {shape} does not fit {form.name} blocks", "Re-download it"
                )
            size = weights // form.weights * form.size
            if (stop := start + offset + size) > len(self._data):
                raise CheckpointError(
                    f"{self.path} is truncated: tensor {name!r} ends at byte {stop} of {len(self._data)}",
                    "Download the file again",
                )
            if name in tensors:
                raise CheckpointError(f"{self.path} holds tensor {name!r} twice", "Re-download it")
            tensors[name] = TensorInfo(shape, form, start + offset, size)
        return tensors


def open_gguf(path: Path | str) -> GGUFFile:
    """The file, its header read once for all who ask in a row: configuration, tokenizer and weights.

    Raises:
        CheckpointError: see `GGUFFile`.
    """
    try:
        state = Path(path).stat()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}", "Give the path of a GGUF file") from None
    return _opened(Path(path), state.st_mtime_ns, state.st_size, state.st_ino)


@lru_cache(maxsize=1)
def _opened(path: Path, *state: int) -> GGUFFile:
    return GGUFFile(path)


class _Cursor:
    """Reads little-endian values one after another and never past the end."""

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        # A vocabulary is a hundred thousand strings: slices of an array would take seconds.
        self.path, self.data, self.position = path, data.data, 0

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise CheckpointError(f"{self.path} is truncated within its header", "Download the file again")
        taken = bytes(self.data[self.position : end])
        self.position = end
        return taken

    def scalar(self, code: str) -> Any:
        value = struct.unpack(code, self.take(struct.calcsize(code)))[0]
        # Of all numbers that float32 cannot tell apart the shortest is meant: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(value))) if code == "<f" else value

    def count(self) -> int:
        """A number of things that follow; each takes at least a byte, so it is bounded by what is left."""
        number = int.from_bytes(self.take(8), "little")
        if number > len(self.data) - self.position:
            raise CheckpointError(
                f"{self.path} is damaged or truncated: a count of {number} in its header", "Download the file again"
            )
        return number

    def string(self) -> str:
        raw = self.take(self.count())
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{self.path} is damaged: invalid text in its header ({error})", "Download it again"
            ) from None

    def strings(self, count: int) -> list[str]:
        """As many times `string`: vocabularies are read whenever a model starts, and calls would take most of that."""
        data, position, end = self.data, self.position, len(self.data)
        length_of = struct.Struct("<Q").unpack_from
        texts = []
        for _ in range(count):
            if position + 8 > end or (stop := position + 8 + length_of(data, position)[0]) > end:
                break
            try:
                texts.append(str(data[position + 8 : stop], "utf-8"))
            except UnicodeDecodeError:
                break
            position = stop
        self.position = position
        if len(texts) < count:
            self.string()  # says what is wrong with the next one
        return texts

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY and depth < _MAX_NESTING:
            item, count = int(self.scalar("<I")), self.count()
            if item in _SCALARS:  # numbers in one go
                code = _SCALARS[item]
                return list(struct.unpack(f"<{count}{code[1]}", self.take(count * struct.calcsize(code))))
            if item == _STRING:
                return self.strings(count)
            return [self.value(item, depth + 1) for _ in range(count)]
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        raise CheckpointError(f"{self.path} is damaged: unknown metadata type {kind}", "Download the file again")
