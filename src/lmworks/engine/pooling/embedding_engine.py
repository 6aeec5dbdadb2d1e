"""A model that turns texts into vectors, where an engine is expected: nothing to step. Knows no queue."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmworks.core.errors import CheckpointError, RequestError
from lmworks.engine.config import EngineConfig
from lmworks.engine.outputs import Delta
from lmworks.engine.pooling.cross_encoder import Pair, is_cross_encoder, judge
from lmworks.engine.pooling.embedder import Embedder
from lmworks.engine.process.exchange import ModelInfo
from lmworks.engine.process.operations import names
from lmworks.engine.request import Request
from lmworks.engine.stats import EngineStats


class EmbeddingEngine:
    """Satisfies `loop.SteppedEngine` around an `Embedder`."""

    has_unfinished = False

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._prompt_tokens = 0
        self.info = ModelInfo(
            kind="embed",
            max_model_len=embedder.max_seq_length,
            vocab_size=embedder.model.config.vocab_size,
            operations=names("embed"),
            is_cross_encoder=is_cross_encoder(embedder.model.config),
        )

    @classmethod
    def load(cls, path: Path, config: EngineConfig) -> EmbeddingEngine:
        """Read a folder.

        Raises:
            LMWorksError: the folder holds no model that embeds texts.
        """
        if not path.is_dir():
            raise CheckpointError(f"{path} is no folder, so it holds no embedding model", "Give a model folder")
        budget = max(config.max_num_batched_tokens, 8192)
        return cls(Embedder.load(path, _no_texts, max_num_batched_tokens=budget))

    def add_request(self, request: Request) -> None:
        """Refuse.

        Raises:
            RequestError: always.
        """
        raise RequestError("this model embeds texts and generates none", "Ask /v1/embeddings, or another model")

    def abort(self, _: str) -> list[Delta]:
        """Nothing runs between two calls."""
        return []

    def step(self) -> list[Delta]:
        """Nothing is ever to be done."""
        return []

    @property
    def num_tokens(self) -> int:
        """Tokens computed so far."""
        return self._prompt_tokens

    def stats(self) -> EngineStats:
        """The tokens that were read."""
        return EngineStats(prompt_tokens_total=self._prompt_tokens)

    def embed(self, documents: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Unit vectors of texts that are token ids, without special tokens.

        Returns:
            `vectors`, one per document as native float32 bytes, and `num_tokens` of each with what surrounds it.

        Raises:
            RequestError: a document would have no tokens at all, or a token id is impossible.
        """
        vocabulary = self.info.vocab_size
        for ids in documents:
            if (bad := next((i for i in ids if not 0 <= i < vocabulary), None)) is not None:
                raise RequestError(f"token id {bad} is outside the vocabulary of {vocabulary}", "Use this model's ids")
        surrounded = [self.embedder.surround(ids) for ids in documents]
        if not all(surrounded):
            raise RequestError("a text has no tokens, so it has no vector", "Leave empty texts out")
        vectors = self.embedder.embed_token_ids(surrounded).float()
        vectors = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        counts = [len(ids) for ids in surrounded]
        self._prompt_tokens += sum(counts)
        return {"vectors": [array("f", row).tobytes() for row in vectors.tolist()], "num_tokens": counts}

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """How well the texts of each pair go together, by a model that reads both at once.

        Raises:
            RequestError: the model is no cross-encoder.
            ConfigError: it has several labels.
        """
        if not self.info.is_cross_encoder:
            raise RequestError("this model is no cross-encoder", "Compare vectors")
        self._prompt_tokens += sum(len(ids) for ids, _ in pairs)
        return judge(self.embedder.model, pairs)


def score(engine: EmbeddingEngine, pairs: Sequence[Pair]) -> list[float]:
    """The operation; see `EmbeddingEngine.score`."""
    return engine.score(pairs)


def embed(engine: EmbeddingEngine, documents: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The operation; see `EmbeddingEngine.embed`."""
    return engine.embed(documents)


def _no_texts(_: Sequence[str]) -> Sequence[Sequence[int]]:
    raise AssertionError("texts are tokenized before they come here")
