"""Span corruption: spans give way to sentinels, and are said again behind them (T5, arXiv:1910.10683).

Makes pairs of source and target; the losses are those of `source_target.py`. Knows no model.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmworks.core.config import Config
from lmworks.core.errors import ConfigError
from lmworks.objectives.arrange import Documents, TokenIds
from lmworks.objectives.draws import Draws
from lmworks.objectives.source_target import SourceTarget

TokenId = Annotated[int, Field(ge=0)]
Density = Annotated[float, Field(gt=0, lt=1)]
SpanLength = Annotated[float, Field(ge=1)]


class SpanCorruptionConfig(Config):
    """How much is hidden, in how long spans."""

    sentinel_token_ids: Annotated[tuple[TokenId, ...], Field(min_length=1)]
    """Stand for the first span, the second, ...; T5's are the last ids of the vocabulary, descending."""
    eos_token_id: TokenId | None = None
    """Ends source and target, where given."""
    noise_density: Density = 0.15
    mean_noise_span_length: SpanLength = 3.0


def span_corruption(documents: Documents, draws: Draws, config: SpanCorruptionConfig) -> list[SourceTarget]:
    """A pair of each document; those of a single token are left out.

    Raises:
        ConfigError: a document has more spans than there are sentinels.
    """
    pairs = []
    for ids in (ids for ids in documents if len(ids) > 1):
        hidden = draw_spans(len(ids), draws, config.noise_density, config.mean_noise_span_length)
        pairs.append(hide_spans(ids, hidden, config.sentinel_token_ids, config.eos_token_id))
    return pairs


def span_sizes(length: int, noise_density: float, mean_noise_span_length: float) -> tuple[int, int]:
    """How many of `length` tokens are hidden, and in how many spans.

    A source is then `length` - tokens + spans long and its target tokens + spans, each without an end mark.
    """
    tokens = min(max(round(length * noise_density), 1), length - 1)
    spans = max(round(tokens / mean_noise_span_length), 1)
    return tokens, min(spans, tokens, length - tokens)


def draw_spans(length: int, draws: Draws, noise_density: float, mean_noise_span_length: float) -> NDArray[np.bool_]:
    """[T] whether a token is hidden. Spans and what stands between them alternate; the first token always stays.

    Args:
        length: of the document, at least 2.
        draws: of the row.
        noise_density: share of tokens that is hidden.
        mean_noise_span_length: tokens of a span.
    """
    tokens, spans = span_sizes(length, noise_density, mean_noise_span_length)
    kept, hidden = _segments(length - tokens, spans, draws), _segments(tokens, spans, draws)
    lengths = np.stack([kept, hidden], axis=1).reshape(-1)
    return np.repeat(np.tile([False, True], spans), lengths)


def _segments(count: int, parts: int, draws: Draws) -> NDArray[np.int64]:
    """[parts] lengths from 1 that sum to `count`; every such division is equally likely."""
    cuts = 1 + draws.choose(count - 1, parts - 1)
    return np.diff(cuts, prepend=0, append=count)


def hide_spans(
    token_ids: TokenIds, hidden: NDArray[np.bool_], sentinel_token_ids: tuple[int, ...], eos_token_id: int | None
) -> SourceTarget:
    """The document with each hidden span as a sentinel, and each span behind its sentinel.

    Raises:
        ConfigError: there are more spans than sentinels.
    """
    ending = [] if eos_token_id is None else [eos_token_id]
    source, target = (_one_for_each(token_ids, where, sentinel_token_ids) for where in (hidden, ~hidden))
    return SourceTarget(np.append(source, ending).astype(np.int64), np.append(target, ending).astype(np.int64))


def _one_for_each(token_ids: TokenIds, where: NDArray[np.bool_], sentinels: tuple[int, ...]) -> TokenIds:
    """Every run of `where` becomes one sentinel."""
    first = where & ~np.concatenate([[False], where[:-1]])
    runs = int(first.sum())
    if runs > len(sentinels):
        raise ConfigError(
            f"a document of {len(token_ids)} tokens has {runs} hidden spans, and there are {len(sentinels)} sentinels",
            "Give more sentinel_token_ids, take shorter rows or longer spans",
        )
    ids = token_ids.copy()
    ids[first] = sentinels[:runs]
    return ids[~where | first]
