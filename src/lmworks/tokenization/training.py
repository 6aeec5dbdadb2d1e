"""Stage `tokenizer train`: byte-level BPE (Sennrich et al., 2016, arXiv:1508.07909) learned from a corpus.

The same corpus and configuration give the same bytes. Knows no model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tokenizers
from pydantic import Field, model_validator

from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.errors import DataError
from lmworks.core.lineage import Manifest, clock, write_artifact
from lmworks.core.progress import bar, say
from lmworks.tokenization.byte_alphabet import BYTE_OF
from lmworks.tokenization.chat_template import CHATML
from lmworks.tokenization.definition import TokenizerDefinition
from lmworks.tokenization.pretokenizers import BYTE_LEVEL, by_pattern, gpt4_pattern
from lmworks.tokenization.tokenizer import Tokenizer, load_tokenizer

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
"""Ids 0, 1 and 2. The first begins and ends documents, the others enclose chat turns."""

SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256


class TokenizerConfig(Config):
    """Train a byte-level BPE tokenizer."""

    corpus: Path
    """Corpus folder with `train.jsonl` and `validation.jsonl`."""
    output: Path
    """Tokenizer folder to write."""
    vocab_size: Annotated[int, Field(ge=SMALLEST_VOCABULARY)] = 4096
    """Tokens in all, with the 256 bytes and 3 special tokens."""
    max_digits: Literal[1, 3] = 1
    """Longest run of digits in one token; single digits suit arithmetic and small vocabularies."""
    reference: Path | None = None
    """Tokenizer folder or `.gguf` file to compare the bytes per token with."""
    special_tokens: tuple[str, ...] = ()
    """Further ones that objectives ask for, such as `<mask>` or `<fim_prefix>`; they come after the three."""
    num_sentinels: Annotated[int, Field(ge=0, le=1000)] = 0
    """Also `<extra_id_0>`, `<extra_id_1>`, ...: so many, which stand for hidden spans (T5 has 100)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        named = self.all_special_tokens
        if len(set(named)) < len(named) or not all(named):
            raise ValueError(f"special_tokens {self.special_tokens} must be new and not empty")
        if self.vocab_size < (least := len(named) + 256):
            raise ValueError(f"vocab_size {self.vocab_size} does not hold 256 bytes and {len(named)} special tokens: "
                             f"give at least {least}")  # fmt: skip
        return self

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
    if tokenizer.vocab_size < config.vocab_size:
        say(f"The corpus has pairs for {tokenizer.vocab_size} tokens only, not {config.vocab_size}.")
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
    """The tokenizer, and how many bytes of text it was learned from."""
    empty = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    empty |= {"pre_tokenizer": by_pattern(gpt4_pattern(config.max_digits)), "decoder": BYTE_LEVEL}
    backend = tokenizers.Tokenizer.from_str(json.dumps(empty))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(config.all_special_tokens),
        initial_alphabet=sorted(BYTE_OF),
        min_frequency=2,
        show_progress=False,
    )
    source = config.corpus / "train.jsonl"
    total = 0

    def texts() -> Iterator[str]:
        nonlocal total
        with bar("Learning the tokenizer", source.stat().st_size) as progress:
            for text in read_texts(source):
                size = len(text.encode())
                total += size
                progress.advance(size)
                yield text

    if not source.is_file():
        raise DataError(f"{config.corpus} holds no train.jsonl", "Give a corpus made by `lmworks data prepare`")
    backend.train_from_iterator(texts(), trainer)
    if not total:
        raise DataError(f"{source} holds no text to learn a tokenizer from", "Prepare a corpus with documents in it")
    # Documents begin with bos in training, so every reader of the folder has to put it there too.
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, backend.token_to_id(END_OF_TEXT))],
    )
    roles: dict[str, Any] = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    roles["add_bos_token"] = True
    return Tokenizer(TokenizerDefinition(json.loads(backend.to_str()), roles, CHATML)), total


def bytes_per_token(tokenizer: Tokenizer, file: Path) -> float:
    """UTF-8 bytes of the documents in a JSONL file over the number of their tokens."""
    num_bytes = num_tokens = 0
    documents = read_texts(file)
    while texts := list(islice(documents, 256)):
        num_bytes += sum(len(text.encode()) for text in texts)
        num_tokens += sum(map(len, tokenizer.encode_batch(texts)))
    return num_bytes / max(1, num_tokens)


def read_texts(file: Path) -> Iterator[str]:
    """The `text` of each row of a JSONL file.

    Raises:
        DataError: a row is not a JSON object with a text.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = json.loads(line)["text"]
                text.encode()
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                problem = f"{file}, line {number} is not a JSON object with a `text` of valid Unicode: {error}"
                raise DataError(problem, "Prepare the corpus anew") from None
            yield text
