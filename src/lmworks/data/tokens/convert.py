"""Token files in another form: datatrove's `.ds`, Megatron's `.idx`, nanoGPT's `.bin`, and shards for training.

Tokens go over as they are, one document after another, are checked against the vocabulary on the way and compared with
what can be read back. Nothing is ever written over. What is written says which documents of which sources it holds, so
that lineage goes on through it. Knows no texts but to count their bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lmworks.core.code_version import code_version
from lmworks.core.errors import DataError, TokenizerError
from lmworks.core.lineage import clock, write_artifact
from lmworks.core.progress import bar
from lmworks.data.tokens.by_ends import Ids
from lmworks.data.tokens.token_files import FORMS, documents, is_megatron, room, write_documents
from lmworks.data.tokens.token_store import TokenStoreWriter
from lmworks.data.tokens.tokenize import SPLITS, document_marks, figures
from lmworks.tokenization import Tokenizer


@dataclass
class Account:
    """What went over.

    Args:
        documents: written.
        tokens: of them.
        read: documents of each source.
        left_out: documents that have no tokens, or but a mark: their numbers in all sources together.
        unmarked: documents whose mark in front was left out, as the one behind them is the same.
    """

    documents: int = 0
    tokens: int = 0
    read: list[int] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    unmarked: int = 0
    _sum: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=16), repr=False)

    @property
    def empty(self) -> int:
        """How many were left out."""
        return len(self.left_out)

    def to_note(self) -> dict[str, list[int]]:
        """By which a document's number here is told from its number in a source."""
        return {"read": self.read, "left_out": self.left_out}

    def leave_out(self) -> None:
        """The document that was read last does not go over."""
        self.left_out.append(sum(self.read) - 1)

    def passing(self, documents: Iterable[Ids]) -> Iterator[Ids]:
        """Documents, counted as they pass."""
        for ids in documents:
            self.documents += 1
            self.tokens += len(ids)
            self._sum.update(len(ids).to_bytes(8, "little") + ids.astype("<u4").tobytes())
            yield ids

    @property
    def digest(self) -> str:
        """Of every document that passed, in order."""
        return self._sum.hexdigest()


def convert_tokens(
    sources: Sequence[Path], target: Path, tokenizer: Tokenizer | None = None, *, validation: Sequence[Path] = (),
    vocab_size: int | None = None, end_token: int | None = None,
) -> dict[str, Account]:  # fmt: skip
    """Write the documents of token files in the form that `target` names.

    Args:
        sources: `.ds`, `.idx` and `.bin` files and folders of a token store, in order.
        target: a new `.ds`, `.idx` or `.bin` file, or a new folder: a tokens artifact, its training split. An `.idx`
            gets its `.bin` beside it.
        tokenizer: that made the tokens; an artifact needs it, else it stands for the next two.
        validation: held-out documents of an artifact.
        vocab_size: every id is below it; None takes the tokenizer's, else what the sources allow.
        end_token: between the documents of `.bin` files without an index; None takes the tokenizer's.

    Returns:
        What went over, by split; of a file under its name.

    Raises:
        DataError: the target is there already, an id leaves the vocabulary, or a form cannot hold a document.
        ArtifactError: a source is missing or damaged.
        TokenizerError: a `.bin` is asked for and the tokenizer has no end-of-text token.
        DiskFullError: the device is full; nothing is left behind.
    """
    if target.exists() or target.is_symlink():
        raise DataError(f"{target} is there already", "Give a new path: nothing is written over")
    if vocab_size is None:
        vocab_size = tokenizer.vocab_size if tokenizer is not None else max(map(room, (*sources, *validation)))
    if end_token is None and tokenizer is not None:
        end_token = document_marks(tokenizer)[1]
    if target.suffix in FORMS:
        if validation:
            raise DataError(f"{target} is one file and has no validation split", "Convert each split to its own file")
        if target.suffix == ".bin" and end_token is None:
            raise DataError("a .bin marks documents by an end token alone", "Give end_token or the tokenizer")
        if target.suffix == ".bin" and is_megatron(target):
            raise DataError(f"{target} would be read with the .idx beside it", "Give another name")
        return {target.name: _write_file(sources, target, vocab_size, end_token)}
    if target.suffix:
        raise DataError(
            f"{target} names no known form", "Let it end in .ds, .idx or .bin, or be a folder without an ending"
        )
    if tokenizer is None:
        raise TokenizerError("a tokens artifact names its tokenizer", "Give the tokenizer that made the tokens")
    return _write_artifact({"train": sources, "validation": validation}, target, tokenizer, vocab_size, end_token)


def _checked(sources: Sequence[Path], end_token: int | None, vocab_size: int, account: Account) -> Iterator[Ids]:
    """Documents with tokens, every one in the vocabulary."""
    with bar("convert documents") as progress:
        for source in sources:
            account.read.append(0)
            for ids in documents([source], end_token, vocab_size):
                account.read[-1] += 1
                if not len(ids):
                    account.leave_out()
                    continue
                if int(ids.max()) >= vocab_size:
                    raise DataError(
                        f"{source}: a document has the id {ids.max()}, and the vocabulary ends at {vocab_size}",
                        "Give the tokenizer that made the tokens",
                    )
                yield ids
                progress.advance()


def _marked(given: Iterable[Ids], mark: int, account: Account) -> Iterator[Ids]:
    """Documents with one mark each, all behind or all in front."""
    place = None
    for number, ids in enumerate(given):
        if len(ids) > 1 and ids[0] == ids[-1] == mark:
            ids = ids[1:]
            account.unmarked += 1
        if len(ids) == 1 and ids[0] == mark:
            account.leave_out()
            continue
        marks = np.flatnonzero(ids == mark)
        place = (0 if ids[0] == mark else -1) if place is None else place
        if len(marks) != 1 or marks[0] != place % len(ids):
            raise DataError(
                f"document {number} has the end token {mark} {len(marks)} times at {marks[:3].tolist()} of {len(ids)}, "
                "so a .bin would be cut elsewhere",
                "Convert to .ds, which keeps the documents' ends, or give the right end token",
            )
        yield ids


def _compare(path: Path, end_token: int | None, vocab_size: int, account: Account) -> None:
    """Read back what was written."""
    if not account.documents:
        raise DataError("the sources hold no document", "Give token files that are not empty")
    again = Account()
    for _ in again.passing(documents([path], end_token, vocab_size)):
        pass
    assert again.digest == account.digest, "what was written reads differently"


def _named(source: Path) -> Path:
    """By which lineage knows a source: of a pair of files of Megatron the index."""
    return source.with_suffix(".idx") if is_megatron(source) else source


def _write_file(sources: Sequence[Path], target: Path, vocab_size: int, end_token: int | None) -> Account:
    account = Account()
    given = _checked(sources, end_token, vocab_size, account)
    if target.suffix == ".bin":
        assert end_token is not None, "checked before"
        given = _marked(given, end_token, account)
    with write_artifact(
        target,
        "tokens",
        config={"sources": list(map(str, sources)), "vocab_size": vocab_size, "end_token": end_token},
        parents={f"{target.name}.{n}": _named(path) for n, path in enumerate(sources)},
        code_version=code_version(__name__),
        one_file=True,
    ) as writer:
        write_documents(account.passing(given), writer.folder / target.name, vocab_size)
        _compare(writer.folder / target.name, end_token, vocab_size, account)
        for made in writer.folder.iterdir():
            if (there := target.with_name(made.name)).exists():
                raise DataError(f"{there} is there already", "Give a new path: nothing is written over")
        writer.metrics = {"documents": account.documents, "tokens": account.tokens}
        writer.notes = {"converted": {target.name: account.to_note()}}
    return account


def _write_artifact(
    splits: dict[str, Sequence[Path]], target: Path, tokenizer: Tokenizer, vocab_size: int, end_token: int | None
) -> dict[str, Account]:
    started = clock()
    accounts = {split: Account() for split in SPLITS}
    with write_artifact(
        target,
        "tokens",
        config={"sources": {split: list(map(str, paths)) for split, paths in splits.items()}},
        parents={f"{split}.{n}": _named(path) for split, paths in splits.items() for n, path in enumerate(paths)},
        code_version=code_version(__name__),
        started=started,
    ) as writer:
        for split, account in accounts.items():
            given = account.passing(_checked(splits[split], end_token, vocab_size, account))
            with TokenStoreWriter(writer.folder / split, vocab_size) as store:
                store.add((ids.tolist(), len(tokenizer.decode(ids.tolist()).encode())) for ids in given)
            if account.documents or split == "train":
                _compare(writer.folder / split, end_token, vocab_size, account)
            writer.metrics.update(figures(split, store))
        writer.notes = {
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "vocab_size": vocab_size,
            "converted": {split: account.to_note() for split, account in accounts.items()},
        }
    return accounts
