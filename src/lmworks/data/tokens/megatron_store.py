"""Token files of Megatron-LM: `NAME.bin` with bare ids and `NAME.idx`, which tells where sequences and documents end.

The index, little-endian: nine bytes that name it, a version, a code of the ids' type, the number of sequences and of
document bounds; then the lengths of the sequences (int32), their byte offsets (int64), and the bounds, numbers of
sequences from 0 on (int64). GPT-NeoX and RWKV have the same files. Knows neither tokenizers nor texts.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lmworks.core.errors import ArtifactError, DataError
from lmworks.data.tokens.by_ends import DocumentsByEnds, Ids, ascending, bytes_of
from lmworks.data.tokens.token_store import map_array

_MAGIC, _VERSION = b"MMIDIDX\x00\x00", 1
_HEAD = struct.Struct("<9sQBQQ")
_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""By code, the types that hold ids; 6 and 7 are floating-point numbers."""
_UINT16, _INT32 = 8, 4
_SMALL_VOCABULARY = 65_500
"""Below it Megatron takes two bytes for an id."""
_LONGEST = (1 << 31) - 1
"""Tokens in one sequence."""


class MegatronFile(DocumentsByEnds):
    """Random access to one pair of files: `len(file)` documents, `file[i]` the ids of one, all its sequences in a row.

    Args:
        path: the `.idx` file or the `.bin` file beside it.

    Raises:
        ArtifactError: a file is missing, cut off or of another kind, or the two do not belong together.
        DataError: it holds no ids but numbers or images.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).with_suffix(".idx")
        tokens = self.path.with_suffix(".bin")
        for file in (self.path, tokens):
            if not file.is_file():
                raise ArtifactError(f"{file} is missing", "Give an .idx file with its .bin beside it")
        code, num_sequences, num_bounds = self._head()
        if code not in _TYPES:
            raise DataError(f"{self.path} holds numbers of type {code}, which are no token ids", "Give tokenized text")
        dtype = np.dtype(_TYPES[code])
        self.largest_id: int = np.iinfo(dtype).max
        """That its type has room for."""
        content = (
            np.memmap(self.path, np.uint8, "r", _HEAD.size) if num_sequences + num_bounds else np.empty(0, np.uint8)
        )
        lengths, offsets, bounds = (
            part.view(kind)
            for part, kind in zip(
                np.split(content, np.cumsum([4 * num_sequences, 8 * num_sequences])), ("<i4", "<i8", "<i8"), strict=True
            )
        )
        ends = np.cumsum(lengths, dtype=np.int64)
        if (lengths < 0).any() or not np.array_equal(offsets, (ends - lengths) * dtype.itemsize):
            raise ArtifactError(f"{self.path}: the sequences do not lie one behind the other", "Write it anew")
        if not len(bounds) or not ascending(bounds) or bounds[0] != 0 or bounds[-1] != num_sequences:
            raise ArtifactError(
                f"{self.path}: the bounds of documents do not ascend from 0 to {num_sequences} sequences", "Restore it"
            )
        # Ids below 0 become large ones, which leave every vocabulary.
        self._content = map_array(tokens, dtype, int(ends[-1]) if len(ends) else 0).view(f"<u{dtype.itemsize}")
        super().__init__(np.concatenate([np.zeros(1, np.int64), ends])[bounds[1:]], (path,))

    def _head(self) -> tuple[int, int, int]:
        """Code of the type, number of sequences, number of bounds; the file's size is theirs."""
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            head = file.read(_HEAD.size)
        if not head.startswith(_MAGIC):
            raise ArtifactError(f"{self.path} does not begin as Megatron's index files do", "Give a file that it wrote")
        if len(head) < _HEAD.size:
            raise ArtifactError(f"{self.path} is cut off: it has {size} bytes", "Restore it")
        _, version, code, num_sequences, num_bounds = _HEAD.unpack(head)
        if version != _VERSION:
            raise ArtifactError(f"{self.path} has version {version}, and {_VERSION} is known", "Write it anew")
        expected = _HEAD.size + 12 * num_sequences + 8 * num_bounds
        if num_sequences and size == expected + num_sequences:
            raise DataError(f"{self.path} tells a mode of each sequence, as sets with images do", "Give text alone")
        if size != expected:
            raise ArtifactError(
                f"{self.path} has {size} bytes, and {num_sequences} sequences with {num_bounds} bounds take {expected}",
                "Restore it",
            )
        return code, num_sequences, num_bounds

    def _tokens(self, begin: int, end: int) -> Ids:
        return self._content[begin:end]


def write_megatron(documents: Iterable[Ids], path: Path | str, vocab_size: int) -> None:
    """Write documents, each as one sequence.

    Args:
        documents: their ids.
        path: a new `.idx` file; the `.bin` beside it is written too.
        vocab_size: two bytes an id below 65,500 entries, else four, as Megatron has it.

    Raises:
        DataError: a file is there already, or an id or a document is too large for the form.
    """
    path = Path(path)
    tokens = path.with_suffix(".bin")
    if path.suffix != ".idx" or path.exists() or tokens.exists():
        problem = f"{path} or its .bin is there already, or the name does not end with .idx"
        raise DataError(problem, "Give the name of a new .idx file")
    code = _UINT16 if vocab_size < _SMALL_VOCABULARY else _INT32
    dtype = np.dtype(_TYPES[code])
    path.parent.mkdir(parents=True, exist_ok=True)
    counted = array("q")
    with tokens.open("wb") as file:
        for ids in documents:
            if len(ids) > _LONGEST:
                raise DataError(f"a document has {len(ids)} tokens, and Megatron's files hold {_LONGEST}", "Divide it")
            file.write(bytes_of(ids, dtype))
            counted.append(len(ids))
    lengths = np.frombuffer(counted, np.int64)
    with path.open("wb") as file:
        file.write(_HEAD.pack(_MAGIC, _VERSION, code, len(lengths), len(lengths) + 1))
        file.write(lengths.astype("<i4").tobytes())
        file.write(((np.cumsum(lengths) - lengths) * dtype.itemsize).astype("<i8").tobytes())
        file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
