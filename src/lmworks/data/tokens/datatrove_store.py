"""Token files of other programs: datatrove's `.ds` with its index, and the `.bin` of nanoGPT and llm.c.

All are bare little-endian ids. datatrove keeps the documents' ends beside them; the others mark them by an end token.
Knows neither tokenizers nor texts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmworks.core.errors import ArtifactError, DataError
from lmworks.data.tokens.packing import Store
from lmworks.data.tokens.token_store import INDEX, TokenStore, map_array, token_dtype

_HEADER = 256
"""Words of 32 bits before the tokens of an llm.c file: a magic number, a version, the number of tokens, zeros."""
_MAGIC = {20240520: "<u2", 20240801: "<u4"}
"""By the magic number, of which type tokens are: two bytes, or four for vocabularies over 65,536."""
_TOKENS_AT_ONCE = 1 << 24


class DatatroveFile:
    """Random access to one `.ds` file: `len(file)` documents, `file[i]` the ids of one.

    Args:
        path: the `.ds` file, with `.ds.index` beside it.
        token_bytes: 2 or 4; None reads it from `.ds.metadata`, else from the sizes of the two files.

    Raises:
        ArtifactError: a file is missing, or the index does not end where the tokens do.
    """

    def __init__(self, path: Path | str, token_bytes: Literal[2, 4] | None = None) -> None:
        self.path = Path(path)
        index = self.path.with_name(self.path.name + ".index")
        for file in (self.path, index):
            if not file.is_file():
                raise ArtifactError(f"{file} is missing", "Give a .ds file with its .ds.index beside it")
        if index.stat().st_size % 8:
            raise ArtifactError(f"{index} is cut off: {index.stat().st_size} bytes are no 64-bit numbers", "Restore it")
        ends = map_array(index, np.dtype("<u8"), index.stat().st_size // 8).astype(np.int64)
        if (np.diff(ends, prepend=0) < 0).any():
            raise ArtifactError(f"{index}: the ends of documents do not ascend", "Restore it")
        self.num_tokens = int(ends[-1]) if len(ends) else 0
        size = self.path.stat().st_size
        width = token_bytes or (size // self.num_tokens if self.num_tokens else 2)
        if width not in (2, 4) or size != width * self.num_tokens:
            raise ArtifactError(
                f"{self.path} has {size} bytes, its index counts {self.num_tokens} tokens of {token_bytes or '2 or 4'}",
                "Restore the two files, which belong together",
            )
        self.token_bytes = width
        self.lengths: NDArray[np.int64] = np.diff(ends, prepend=0)
        """[documents] tokens in each."""
        self._ends = ends
        self._tokens = map_array(self.path, np.dtype(f"<u{width}"), self.num_tokens)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> NDArray[np.unsignedinteger]:
        """The token ids of one document, as a view of the file."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self._tokens[self._ends[index] - self.lengths[index] : self._ends[index]]


def write_datatrove(store: Store, count: int, path: Path | str, vocab_size: int, tokenizer: str = "") -> None:
    """Write documents as a `.ds` file with its index and metadata.

    Args:
        store: where they are.
        count: how many, from the first.
        path: the file, whose name ends with `.ds`.
        vocab_size: two bytes a token up to 65,536 entries, else four, as datatrove has it.
        tokenizer: its name, for the metadata.

    Raises:
        DataError: the file is there already, or is not called so.
    """
    write_datatrove_documents((store[index] for index in range(count)), path, vocab_size, tokenizer)


def write_datatrove_documents(
    documents: Iterable[NDArray[np.unsignedinteger]], path: Path | str, vocab_size: int, tokenizer: str = ""
) -> None:
    """As `write_datatrove`, of documents one after another."""
    path = Path(path)
    if path.suffix != ".ds" or path.exists():
        raise DataError(f"{path} is there already or does not end with .ds", "Give the name of a new .ds file")
    dtype = token_dtype(vocab_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = array("q")
    with path.open("wb") as file:
        for ids in documents:
            file.write(ids.astype(dtype).tobytes())
            lengths.append(len(ids))
    ends = np.cumsum(np.frombuffer(lengths, np.int64))
    ends.astype("<u8").tofile(path.with_name(path.name + ".index"))
    total = int(ends[-1]) if len(ends) else 0
    metadata = f"{tokenizer or 'Unknown Tokenizer'}|{dtype.itemsize}\n{total}\n{_short(total)}"
    path.with_name(path.name + ".metadata").write_text(metadata, encoding="utf-8")


def read_bin(path: Path | str, end_token: int, vocab_size: int) -> Iterator[NDArray[np.unsignedinteger]]:
    """The documents of a `.bin` file of nanoGPT (bare ids) or llm.c (after a header), their end mark included.

    Args:
        path: the file.
        end_token: the id between documents, 50256 with GPT-2's vocabulary; llm.c puts it before each, nanoGPT after.
        vocab_size: says whether bare ids have two bytes or four.

    Raises:
        ArtifactError: the file is missing, or its size is not what its header says.
    """
    path = Path(path)
    size = path.stat().st_size if path.is_file() else 0
    header = np.fromfile(path, "<i4", 3) if size >= 4 * _HEADER else np.zeros(3, np.int32)
    start, dtype = 0, np.dtype(token_dtype(vocab_size))
    if int(header[0]) in _MAGIC:
        start, dtype = 4 * _HEADER, np.dtype(_MAGIC[int(header[0])])
    count, rest = divmod(size - start, dtype.itemsize)
    if not size or rest or (start and count != int(header[2])):
        says = f", its header counts {header[2]} tokens" if start else ""
        raise ArtifactError(f"{path} has {size} bytes of {dtype.itemsize} a token{says}", "Restore the file")
    tokens = np.memmap(path, dtype=dtype, mode="r", offset=start, shape=(count,)) if count else np.empty(0, dtype)
    begin = 0
    first_is_mark = bool(count) and int(tokens[0]) == end_token
    for block in range(0, count, _TOKENS_AT_ONCE):
        marks = np.flatnonzero(tokens[block : block + _TOKENS_AT_ONCE] == end_token) + block
        for mark in marks.tolist():
            end = mark if first_is_mark else mark + 1
            if end > begin:
                yield tokens[begin:end]
                begin = end
    if begin < count:
        yield tokens[begin:]


def documents(paths: Sequence[Path], end_token: int | None, vocab_size: int) -> Iterator[NDArray[np.unsignedinteger]]:
    """The documents of `.ds` and `.bin` files and of folders of a token store, one after the other.

    Raises:
        DataError: a path is of another kind, or the end token of a `.bin` is not given.
    """
    for path in paths:
        if path.suffix == ".ds":
            file = DatatroveFile(path)
            yield from (file[i] for i in range(len(file)))
        elif (path / INDEX).is_file():
            store = TokenStore(path)
            yield from (store[i] for i in range(len(store)))
        elif path.suffix == ".bin" and end_token is not None:
            yield from read_bin(path, end_token, vocab_size)
        else:
            inside = [str(path / name) for name in ("train", "validation") if (path / name / INDEX).is_file()]
            raise DataError(
                f"{path} is no .ds file, no .bin with an end token given and no folder of a token store",
                f"Give one of its splits: {', '.join(inside)}" if inside else "Give what it is",
            )


def _short(count: int) -> str:
    """A count in three digits for people, as datatrove writes it: `12.3 MT`."""
    power = min(4, (len(str(count)) - 1) // 3)
    value = count / 1000**power
    decimals = max(0, 3 - len(str(int(value))))
    return f"{value:.{decimals}f} {('', 'k', 'M', 'G', 'T')[power]}T"
