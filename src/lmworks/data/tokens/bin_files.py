"""The `.bin` files of nanoGPT and llm.c: bare little-endian ids in which an end token alone marks the documents.

Knows neither tokenizers nor texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lmworks.core.errors import ArtifactError
from lmworks.data.tokens.by_ends import Ids, bytes_of
from lmworks.data.tokens.token_store import token_dtype

_HEADER = 256
"""Words of 32 bits before the tokens of an llm.c file: a magic number, a version, the number of tokens, zeros."""
_MAGIC = {20240520: "<u2", 20240801: "<u4"}
"""By the magic number, of which type tokens are: two bytes, or four for vocabularies over 65,536."""
_TOKENS_AT_ONCE = 1 << 24


def read_bin(path: Path | str, end_token: int, vocab_size: int) -> Iterator[Ids]:
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


def write_bin(documents: Iterable[Ids], path: Path, vocab_size: int) -> None:
    """Write documents, which must have an end token each, as nanoGPT does: without a header."""
    dtype = token_dtype(vocab_size)
    with path.open("wb") as file:
        for ids in documents:
            file.write(bytes_of(ids, dtype))
