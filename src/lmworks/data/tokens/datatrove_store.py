"""Token files of datatrove: `NAME.ds` with bare little-endian ids, and `NAME.ds.index`, the documents' ends.

Knows neither tokenizers nor texts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lmworks.core.errors import ArtifactError, DataError
from lmworks.data.tokens.by_ends import DocumentsByEnds, Ids, ascending, bytes_of
from lmworks.data.tokens.token_store import map_array, token_dtype


class DatatroveFile(DocumentsByEnds):
    """Random access to one `.ds` file: `len(file)` documents, `file[i]` the ids of one.

    Ids have as many bytes as the sizes of the two files say. Of files whose chunks were shuffled, the pieces of a
    document that was cut are documents, as they are for datatrove.

    Args:
        path: the `.ds` file, with `.ds.index` beside it.

    Raises:
        ArtifactError: a file is missing, or the index does not end where the tokens do.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        index = self.path.with_name(self.path.name + ".index")
        for file in (self.path, index):
            if not file.is_file():
                raise ArtifactError(f"{file} is missing", "Give a .ds file with its .ds.index beside it")
        size = index.stat().st_size
        if size % 8:
            raise ArtifactError(f"{index} is cut off: {size} bytes are no 64-bit numbers", "Restore it")
        super().__init__(map_array(index, np.dtype("<i8"), size // 8), (path,))
        if not ascending(self._ends):
            raise ArtifactError(f"{index}: the ends of documents do not ascend", "Restore it")
        size = self.path.stat().st_size
        self.token_bytes = size // self.num_tokens if self.num_tokens else 2
        """Of each id, 2 or 4."""
        if self.token_bytes not in (2, 4) or size != self.token_bytes * self.num_tokens:
            raise ArtifactError(
                f"{self.path} has {size} bytes, its index counts {self.num_tokens} tokens of 2 or 4",
                "Restore the two files, which belong together",
            )
        self._content = map_array(self.path, np.dtype(f"<u{self.token_bytes}"), self.num_tokens)

    def _tokens(self, begin: int, end: int) -> Ids:
        return self._content[begin:end]


def write_datatrove(documents: Iterable[Ids], path: Path | str, vocab_size: int, tokenizer: str = "") -> None:
    """Write documents as a `.ds` file with its index and metadata.

    Args:
        documents: their ids.
        path: the file, whose name ends with `.ds`.
        vocab_size: two bytes a token up to 65,536 entries, else four, as datatrove has it.
        tokenizer: its name, for the metadata.

    Raises:
        DataError: the file is there already or is not called so, or an id is too large.
    """
    path = Path(path)
    if path.suffix != ".ds" or path.exists():
        raise DataError(f"{path} is there already or does not end with .ds", "Give the name of a new .ds file")
    dtype = token_dtype(vocab_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = array("q")
    with path.open("wb") as file:
        for ids in documents:
            file.write(bytes_of(ids, dtype))
            lengths.append(len(ids))
    ends = np.cumsum(np.frombuffer(lengths, np.int64))
    ends.astype("<u8").tofile(path.with_name(path.name + ".index"))
    total = int(ends[-1]) if len(ends) else 0
    metadata = f"{tokenizer or 'Unknown Tokenizer'}|{dtype.itemsize}\n{total}\n{_short(total)}"
    path.with_name(path.name + ".metadata").write_text(metadata, encoding="utf-8")


def _short(count: int) -> str:
    """A count in three digits for people, as datatrove writes it: `12.3 MT`."""
    power = min(4, (len(str(count)) - 1) // 3)
    value = count / 1000**power
    decimals = max(0, 3 - len(str(int(value))))
    return f"{value:.{decimals}f} {('', 'k', 'M', 'G', 'T')[power]}T"
