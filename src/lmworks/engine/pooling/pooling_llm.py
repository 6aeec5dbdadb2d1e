"""Vectors of texts and scores of pairs of texts, by models of any head. Knows no cache and generates nothing.

A model whose head judges documents (a classifier with one label, a reward model) reads both texts of a pair at once:
a cross-encoder. Any other scores a pair by the cosine of the texts' vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from lmworks.core.errors import RequestError
from lmworks.engine.pooling.cross_encoder import is_cross_encoder, judge
from lmworks.engine.pooling.embedder import Embedder, EmbedderSettings
from lmworks.engine.prompts import pair_encoder, surroundings
from lmworks.models.config import ModelConfig
from lmworks.models.head_slots import EmbeddingHead
from lmworks.models.transformer import Transformer
from lmworks.tokenization import Tokenizer, load_tokenizer


class PoolingLLM:
    """One model that reads texts.

    Args:
        model: a decoder or an encoder; it may be in training between calls.
        tokenizer: of the model.
        settings: pooling and what surrounds a text; None takes the head's and the tokenizer's.

    Raises:
        ConfigError: the model reads images, or has both encoder and decoder.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, settings: EmbedderSettings | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        with evaluation_mode(model):
            self._embedder = Embedder(model, tokenizer.encode_batch, settings or _settings(model.config, tokenizer))

    @classmethod
    def load(cls, folder: Path, tokenizer: Tokenizer | None = None) -> PoolingLLM:
        """Read a sentence-transformers folder or a plain one; errors as in `Embedder.load` and `load_tokenizer`."""
        tokenizer = tokenizer if tokenizer is not None else load_tokenizer(folder)
        embedder = Embedder.load(folder, tokenizer.encode_batch)
        return cls(embedder.model, tokenizer, embedder.settings)

    @property
    def is_cross_encoder(self) -> bool:
        """Whether the model reads both texts of a pair at once."""
        return is_cross_encoder(self.model.config)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit-length vector per text, in order.

        Raises:
            ConfigError: a text has no tokens.
        """
        with evaluation_mode(self.model):
            return self._embedder.embed(texts)

    def score(self, text_1: str | Sequence[str], text_2: str | Sequence[str]) -> list[float]:
        """How well texts go together: the sigmoid of a cross-encoder's logit, or the cosine of two vectors.

        Args:
            text_1: one for all of `text_2`, or as many.
            text_2: one or several.

        Raises:
            RequestError: the numbers of texts do not fit.
            ConfigError: the model's head has several labels.
        """
        first, second = ([t] if isinstance(t, str) else list(t) for t in (text_1, text_2))
        if len(first) not in (1, len(second)):
            raise RequestError(
                f"{len(first)} texts cannot be paired with {len(second)}", "Give one for all, or one for each"
            )
        if not self.is_cross_encoder:
            vectors = torch.tensor(self.embed([*first, *second])) if second else torch.empty(0, 1)
            return (vectors[: len(first)] * vectors[len(first) :]).sum(-1).clamp(-1, 1).tolist()
        encode = pair_encoder(self.tokenizer, self._embedder.max_seq_length)
        pairs = zip(first * (len(second) // len(first)), second, strict=True)
        with evaluation_mode(self.model):
            return [judge(self.model, [encode(*pair)])[0] for pair in pairs]


@contextmanager
def evaluation_mode(model: Transformer) -> Iterator[None]:
    """Without dropout while the block runs: a model that is being trained may be asked in between."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _settings(config: ModelConfig, tokenizer: Tokenizer) -> EmbedderSettings:
    head = config.head if isinstance(config.head, EmbeddingHead) else EmbeddingHead()
    before, after = surroundings(tokenizer)
    if not before and tokenizer.adds_bos and tokenizer.bos_token_id is not None:
        before = (tokenizer.bos_token_id,)
    return EmbedderSettings(head.pooling, head.normalize, None, before, after)
