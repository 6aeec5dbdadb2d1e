"""Held-out text of one or several domains as tokens, and how well a model predicts it. Knows no training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmworks.core.errors import DataError, TokenizerError
from lmworks.core.lineage import verify
from lmworks.core.progress import say
from lmworks.data.tokens.packing import PackedRows
from lmworks.data.tokens.token_store import TokenStore
from lmworks.objectives.arrange import ArrangedRows
from lmworks.tokenization import Tokenizer
from lmworks.train.callbacks import Callback, StepEnd
from lmworks.train.step import Objective
from lmworks.train.validation import bits_per_byte

SAMPLED_DOCUMENTS = 200
"""Training documents by which the bytes of a token are estimated."""


@dataclass(frozen=True)
class HeldOutText:
    """Some documents and the bytes of their texts."""

    documents: list[NDArray[np.unsignedinteger]]
    num_bytes: int

    @classmethod
    def of(cls, store: TokenStore, tokenizer: Tokenizer, at_most: int) -> HeldOutText:
        """Some documents of a store, spread over all of it.

        Raises:
            DataError: they hold no text.
        """
        documents = _spread(store, at_most)
        num_bytes = _text_bytes(documents, tokenizer)
        if not num_bytes:
            raise DataError(f"{store.path} holds no text to validate with", "Keep some documents for validation")
        return cls(documents, num_bytes)

    def bits_per_byte(self, model: Any, window: int) -> float:
        """See `validation.bits_per_byte`; the model is left in the mode it was in."""
        was_training = model.training
        model.eval()
        value = bits_per_byte(model, self.documents, self.num_bytes, window=window)
        model.train(was_training)
        return value


def measure_texts(texts: Mapping[str, HeldOutText], window: int, before: Mapping[str, float]) -> Callback:
    """Bits per byte of each text, and over all of them.

    Where there are several: `bits_per_byte.NAME` of each; and `forgetting.NAME`, by how much it is above `before`.

    Args:
        texts: by names.
        window: longest context in tokens.
        before: bits per byte of some texts before training.
    """

    def measure(end: StepEnd) -> dict[str, float]:
        values = {name: text.bits_per_byte(end.model, window) for name, text in texts.items()}
        bits = sum(values[name] * text.num_bytes for name, text in texts.items())
        whole = bits / sum(text.num_bytes for text in texts.values())
        figures = {"validation_bits_per_byte": whole}
        if len(values) > 1:
            figures |= {f"bits_per_byte.{name}": value for name, value in values.items()}
        figures |= {f"forgetting.{name}": values[name] - was for name, was in before.items()}
        parts = "".join(f", {name} {value:.4f}" for name, value in values.items()) if len(values) > 1 else ""
        say(f"step {end.step}: validation {whole:.4f} bits per byte{parts}")
        return figures

    return measure


def measure_loss(loss: Objective, rows: Sequence[tuple[PackedRows | ArrangedRows, int]]) -> Callback:
    """Nats per target of an objective on held-out rows, for models that do not read from left to right.

    Args:
        loss: of a batch.
        rows: of each source, with how many to take.
    """

    @torch.no_grad()
    def measure(end: StepEnd) -> dict[str, float]:
        model, was_training = end.model, end.model.training
        model.eval()
        device = next(model.parameters()).device
        losses = [loss(model, source.rows(row, 1).to(device)) for source, count in rows for row in range(count)]
        model.train(was_training)
        value = sum(float(x.loss_sum) for x in losses) / max(1.0, sum(float(x.n_targets) for x in losses))
        say(f"step {end.step}: validation loss {value:.4f} nats per target")
        return {"validation_loss": value}

    return measure


def bytes_per_target(store: TokenStore, tokenizer: Tokenizer) -> float | None:
    """Of text, for each token that is learned, over some training documents; None without text."""
    documents = _spread(store, SAMPLED_DOCUMENTS)
    num_bytes = _text_bytes(documents, tokenizer)
    return num_bytes / sum(len(ids) - 1 for ids in documents) if num_bytes else None


def require_tokenizer(tokens: Path, tokenizer: Tokenizer, folder: Path) -> None:
    """Refuse tokens of another tokenizer.

    Raises:
        ArtifactError: the tokens are missing or damaged.
        TokenizerError: they were made with another tokenizer.
    """
    made_with = verify(tokens).notes.get("tokenizer_fingerprint")
    if made_with != tokenizer.fingerprint:
        raise TokenizerError(
            f"the tokens in {tokens} were made with the tokenizer {made_with}, "
            f"and the one in {folder} is {tokenizer.fingerprint}",
            "Tokenize the corpus again with this tokenizer, or name the one that was used",
        )


def _spread(store: TokenStore, at_most: int) -> list[NDArray[np.unsignedinteger]]:
    """Some documents over the whole store: neighbors come from one source."""
    count = min(len(store), at_most)
    return [store[i * len(store) // count] for i in range(count)]


def _text_bytes(documents: list[NDArray[np.unsignedinteger]], tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of their texts: byte-level tokens know their bytes, so the texts themselves are not needed."""
    return sum(len(tokenizer.token_bytes(int(token))) for ids in documents for token in ids[1:-1])
