"""Token files of every kind, as documents one after another. Knows no single kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lmworks.core.errors import DataError
from lmworks.data.tokens.bin_files import read_bin, write_bin
from lmworks.data.tokens.by_ends import Ids
from lmworks.data.tokens.datatrove_store import DatatroveFile, write_datatrove
from lmworks.data.tokens.megatron_store import MegatronFile, write_megatron
from lmworks.data.tokens.token_store import INDEX, TokenStore, splits_in

FORMS = {".ds": write_datatrove, ".idx": write_megatron, ".bin": write_bin}
"""Files that can be written, by their endings."""


def documents(paths: Sequence[Path], end_token: int | None, vocab_size: int) -> Iterator[Ids]:
    """The documents of token files and of folders of a token store, one after the other.

    Args:
        paths: `.ds` of datatrove, `.idx` of Megatron or the `.bin` beside one, `.bin` of nanoGPT and llm.c, folders.
        end_token: that marks documents in a `.bin` without an index.
        vocab_size: says how many bytes the ids of such a file have.

    Raises:
        DataError: a path is of another kind, or the end token of a `.bin` is not given.
        ArtifactError: a file is missing or damaged.
    """
    for path in paths:
        if path.suffix == ".ds":
            yield from DatatroveFile(path)
        elif is_megatron(path):
            yield from MegatronFile(path)
        elif (path / INDEX).is_file():
            yield from TokenStore(path)
        elif path.suffix == ".bin" and end_token is not None:
            yield from read_bin(path, end_token, vocab_size)
        else:
            inside = splits_in(path)
            raise DataError(
                f"{path} is no .ds or .idx file, no .bin with an end token given and no folder of a token store",
                f"Give one of its splits: {', '.join(inside)}" if inside else "Give what it is",
            )


def room(path: Path) -> int:
    """Ids that the tokens of a file have room for.

    Raises:
        DataError: nothing says it.
        ArtifactError: the file is missing or damaged.
    """
    if path.suffix == ".ds":
        return 1 << 8 * DatatroveFile(path).token_bytes
    if is_megatron(path):
        return min(MegatronFile(path).largest_id + 1, 1 << 32)
    if (path / INDEX).is_file():
        return TokenStore(path).vocab_size
    raise DataError(f"{path} does not say how large its vocabulary is", "Give vocab_size or the tokenizer")


def is_megatron(path: Path) -> bool:
    """Whether a path names a pair of files of Megatron."""
    return path.suffix == ".idx" or (path.suffix == ".bin" and path.with_suffix(".idx").is_file())


def write_documents(given: Iterable[Ids], path: Path, vocab_size: int) -> None:
    """Write documents into a new file whose name ends as one of `FORMS`; for a `.bin` they have an end token each."""
    FORMS[path.suffix](given, path, vocab_size)
