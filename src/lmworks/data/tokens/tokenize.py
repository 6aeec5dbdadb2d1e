"""The stage `data tokenize`: the texts of a corpus as token ids in memory-mapped shards.

Each document is stored as its beginning mark, its tokens and its end mark. Knows neither cleaning nor
packing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.errors import DataError, TokenizerError
from lmworks.core.lineage import Manifest, clock, verify, write_artifact
from lmworks.core.progress import bar, say
from lmworks.data.tokens.token_store import TokenStoreWriter
from lmworks.tokenization import Tokenizer, load_tokenizer

SPLITS = ("train", "validation")
_TEXTS_AT_ONCE = 512


class TokenizeConfig(Config):
    """What to encode with what."""

    corpus: Path
    """A prepared corpus."""
    tokenizer: Path
    """A tokenizer folder, a model folder or a `.gguf` file."""
    output: Path
    """Folder of the tokens artifact."""


def tokenize(config: TokenizeConfig) -> Manifest:
    """Encode a corpus.

    Raises:
        ArtifactError: the corpus does not match its manifest.
        DataError: its training split is empty.
        TokenizerError: the tokenizer cannot be read or has no end-of-text token.
    """
    started = clock()
    verify(config.corpus)
    tokenizer = load_tokenizer(config.tokenizer)
    begin, end = document_marks(tokenizer)
    with write_artifact(
        config.output,
        "tokens",
        config=config.to_dict(),
        parents={"corpus": config.corpus, "tokenizer": config.tokenizer},
        code_version=code_version(__name__),
        started=started,
    ) as writer:
        for split in SPLITS:
            file = config.corpus / f"{split}.jsonl"
            with (
                TokenStoreWriter(writer.folder / split, tokenizer.vocab_size) as store,
                file.open("rb") as source,
                bar(f"tokenize {split}", file.stat().st_size) as progress,
            ):
                for lines in _groups(source):
                    texts = [json.loads(line)["text"] for line in lines]
                    store.add(
                        ([*begin, *ids, end], len(text.encode()))
                        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True)
                    )
                    progress.advance(sum(map(len, lines)))
            writer.metrics.update(figures(split, store))
        writer.notes = {"tokenizer_fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}
        if writer.metrics["train_documents"] == 0:
            raise DataError(f"{config.corpus} holds no training documents", "Prepare a corpus that is not empty")
    say(f"tokens: {writer.metrics}")
    assert writer.manifest is not None, "the block above published it"
    return writer.manifest


def document_marks(tokenizer: Tokenizer) -> tuple[list[int], int]:
    """Ids before a document (one or none) and the id after it.

    Where the beginning mark also ends texts, as `<|endoftext|>` does, it is the end mark too: a chat model's
    other end marks close turns, not documents.
    """
    if not tokenizer.eos_token_ids:
        raise TokenizerError("the tokenizer has no end-of-text token", "Give one that defines eos_token")
    begin = tokenizer.bos_token_id
    end = begin if begin in tokenizer.eos_token_ids else tokenizer.eos_token_ids[0]
    assert end is not None, "None is no end-of-text id"
    return ([] if begin is None else [begin]), end


def _groups(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Lines in groups that a tokenizer can encode in parallel."""
    while group := list(islice(lines, _TEXTS_AT_ONCE)):
        yield group


def figures(split: str, store: TokenStoreWriter) -> dict[str, Any]:
    """What the manifest says of a split."""
    return {
        f"{split}_documents": store.num_documents,
        f"{split}_tokens": store.num_tokens,
        f"{split}_bytes": store.num_bytes,
        f"{split}_bytes_per_token": round(store.num_bytes / max(store.num_tokens, 1), 4),
    }
