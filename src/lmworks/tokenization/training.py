"""Stage `tokenizer train`: a vocabulary of any kind learned from a corpus.

The same corpus and configuration give the same bytes. Knows no model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.errors import DataError
from lmworks.core.lineage import Manifest, clock, write_artifact
from lmworks.core.progress import bar, say
from lmworks.tokenization.chat_template import CHATML
from lmworks.tokenization.corpus_texts import read_texts
from lmworks.tokenization.cuts import Cuts
from lmworks.tokenization.definition import TokenizerDefinition
from lmworks.tokenization.kinds import BASE_SIZE, UNKNOWN, Kind, train_spec
from lmworks.tokenization.tokenizer import Tokenizer, load_tokenizer

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
"""Ids 0, 1 and 2. The first begins and ends documents, the others enclose chat turns."""


class TokenizerConfig(Config):
    """Train a tokenizer."""

    corpus: Path
    """Corpus folder with `train.jsonl` and `validation.jsonl`."""
    output: Path
    """Tokenizer folder to write."""
    vocab_size: Annotated[int, Field(ge=1)] = 4096
    """Tokens in all, with the 256 bytes and 3 special tokens."""
    max_digits: Literal[1, 3, 9] = 1
    """Longest run of digits in one token; single digits suit arithmetic and small vocabularies."""
    reference: Path | None = None
    """Tokenizer folder or `.gguf` file to compare the bytes per token with."""
    special_tokens: tuple[str, ...] = ()
    """Further ones that objectives ask for, such as `<mask>` or `<fim_prefix>`; they come after the three."""
    num_sentinels: Annotated[int, Field(ge=0, le=1000)] = 0
    """Also `<extra_id_0>`, `<extra_id_1>`, ...: so many, which stand for hidden spans (T5 has 100)."""
    kind: Kind = "byte_bpe"
    """byte_bpe; bpe and unigram of characters, with bytes for rare ones; wordpiece (BERT's, spaces are not kept);
    character and byte, which merge nothing."""
    cjk: Literal["mixed", "runs", "characters"] = "mixed"
    """Scripts without spaces: cut like all letters, in runs apart from other scripts, or at every character."""
    whitespace: Literal["runs", "characters"] = "runs"
    """Runs of spaces, such as indentation, may be one token, or every space is one."""
    split_case: bool = False
    """Cut identifiers where their case turns, for code: `parseHTTPHeader` is `parse`, `HTTP`, `Header`."""
    sample_bytes: Annotated[int, Field(gt=0)] = 1 << 30
    """Bytes of the corpus to learn from, spread evenly over it; they bound the memory that is needed."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        named = self.all_special_tokens
        if len(set(named)) < len(named) or not all(named):
            raise ValueError(f"special_tokens {self.special_tokens} must be new and not empty")
        if self.kind in ("bpe", "character", "unigram", "wordpiece") and UNKNOWN in named:
            raise ValueError(f"{UNKNOWN} is a special token of every tokenizer of kind {self.kind}; leave it out")
        if self.vocab_size < (least := len(named) + BASE_SIZE[self.kind]):
            raise ValueError(
                f"vocab_size = {self.vocab_size} does not hold {BASE_SIZE[self.kind]} bytes or unknowns and "
                f"{len(named)} special tokens: give at least {least}"
            )
        if self.kind == "wordpiece" and (self.cjk, self.whitespace, self.split_case) != ("mixed", "runs", False):
            raise ValueError("wordpiece cuts as BERT does: `cjk`, `whitespace` and `split_case` do not change it")
        return self

    @property
    def cuts(self) -> Cuts:
        """Where text is cut before merging."""
        return Cuts(self.max_digits, self.cjk, self.whitespace, self.split_case)

    @property
    def all_special_tokens(self) -> tuple[str, ...]:
        """By id, from 0."""
        return (*SPECIAL_TOKENS, *self.special_tokens, *(f"<extra_id_{i}>" for i in range(self.num_sentinels)))


def train_tokenizer(config: TokenizerConfig) -> Manifest:
    """Learn a tokenizer and write it as a Hugging Face folder of kind `tokenizer`.

    Raises:
        DataError: the corpus is missing, damaged or empty.
        TokenizerError: the reference tokenizer cannot be read.
    """
    started = clock()
    reference = load_tokenizer(config.reference) if config.reference is not None else None
    learning_began = time.perf_counter()
    tokenizer, train_bytes = learn(config)
    train_seconds = time.perf_counter() - learning_began
    if tokenizer.vocab_size < config.vocab_size and config.kind != "byte":
        say(f"The corpus gives {tokenizer.vocab_size} tokens only, not {config.vocab_size}.")
    metrics: dict[str, float | int] = {
        "vocab_size": tokenizer.vocab_size,
        "train_bytes": train_bytes,
        "train_seconds": train_seconds,
    }
    validation = config.corpus / "validation.jsonl"
    if validation.is_file() and validation.stat().st_size:
        metrics["bytes_per_token"] = bytes_per_token(tokenizer, validation)
        if reference is not None:
            metrics["reference_bytes_per_token"] = bytes_per_token(reference, validation)
            metrics["reference_vocab_size"] = reference.vocab_size
    parents = {"corpus": config.corpus} | ({"reference": config.reference} if config.reference is not None else {})
    with write_artifact(
        config.output,
        "tokenizer",
        config=config.to_dict(),
        parents=parents,
        code_version=code_version(__name__),
        started=started,
    ) as artifact:
        tokenizer.save(artifact.folder)
        artifact.metrics.update(metrics)
    assert artifact.manifest is not None
    return artifact.manifest


def learn(config: TokenizerConfig) -> tuple[Tokenizer, int]:
    """The tokenizer, and how many bytes of text it was learned from.

    Raises:
        DataError: the corpus is missing, damaged or empty.
    """
    source = config.corpus / "train.jsonl"
    if not source.is_file():
        raise DataError(f"{config.corpus} holds no train.jsonl", "Give a corpus made by `lmworks data prepare`")
    total = 0

    def texts() -> Iterator[str]:
        nonlocal total
        total = 0
        with bar("Learning the tokenizer", min(source.stat().st_size, config.sample_bytes)) as progress:
            for text in read_texts(source, config.sample_bytes):
                size = len(text.encode())
                total += size
                progress.advance(size)
                yield text

    spec = train_spec(config.kind, texts, config.vocab_size, config.all_special_tokens, config.cuts)
    if not total:
        raise DataError(f"{source} holds no text to learn a tokenizer from", "Prepare a corpus with documents in it")
    # Documents begin with bos in training, so every reader of the folder has to put it there too.
    mark = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}
    single, second = [mark, {"Sequence": {"id": "A", "type_id": 0}}], {"Sequence": {"id": "B", "type_id": 0}}
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, mark, second],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [0], "tokens": [END_OF_TEXT]}},
    }
    roles: dict[str, Any] = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    roles |= {"unk_token": UNKNOWN} if BASE_SIZE[config.kind] % 256 == 1 else {}
    roles["add_bos_token"] = True
    return Tokenizer(TokenizerDefinition(spec, roles, CHATML)), total


def bytes_per_token(tokenizer: Tokenizer, file: Path) -> float:
    """UTF-8 bytes of the documents in a JSONL file over the number of their tokens."""
    num_bytes = num_tokens = 0
    documents = read_texts(file)
    while texts := list(islice(documents, 256)):
        num_bytes += sum(len(text.encode()) for text in texts)
        num_tokens += sum(map(len, tokenizer.encode_batch(texts)))
    return num_bytes / max(1, num_tokens)
