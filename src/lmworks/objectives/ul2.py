"""UL2: a mixture of denoisers, each announced by a token of its mode (arXiv:2205.05131).

Makes pairs of source and target; the losses are those of `source_target.py`. Knows no model.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.objectives.arrange import Documents
from lmworks.objectives.draws import Draws
from lmworks.objectives.source_target import SourceTarget
from lmworks.objectives.span_corruption import Density, SpanLength, TokenId, draw_spans, hide_spans

Mode = Literal["R", "S", "X"]


class Denoiser(Config):
    """One way to hide tokens."""

    mode: Mode
    """Regular spans, sequential (all that is hidden stands at the end), or extreme ones: long, or many."""
    noise_density: Density
    """Share of tokens that is hidden; of the sequential denoiser on average, drawn evenly from 0 to twice as much."""
    mean_noise_span_length: SpanLength = 3.0
    """Not used by the sequential denoiser."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often it is taken, in proportion to the others."""


UL2_DENOISERS = (
    Denoiser(mode="R", noise_density=0.15, mean_noise_span_length=3),
    Denoiser(mode="R", noise_density=0.15, mean_noise_span_length=8),
    Denoiser(mode="S", noise_density=0.25),
    Denoiser(mode="X", noise_density=0.5, mean_noise_span_length=3),
    Denoiser(mode="X", noise_density=0.5, mean_noise_span_length=8),
    Denoiser(mode="X", noise_density=0.15, mean_noise_span_length=64),
    Denoiser(mode="X", noise_density=0.5, mean_noise_span_length=64),
)
"""The seven of the paper, in equal parts."""


class UL2Config(Config):
    """The mixture and its tokens."""

    sentinel_token_ids: Annotated[tuple[TokenId, ...], Field(min_length=1)]
    """As in `SpanCorruptionConfig`."""
    mode_token_ids: dict[Mode, TokenId]
    """Begin a source; empty for none (UL2 without mode tokens)."""
    eos_token_id: TokenId | None = None
    """Ends source and target, where given."""
    denoisers: Annotated[tuple[Denoiser, ...], Field(min_length=1)] = UL2_DENOISERS

    @model_validator(mode="after")
    def _announced(self) -> Self:
        missing = {denoiser.mode for denoiser in self.denoisers} - set(self.mode_token_ids)
        if self.mode_token_ids and missing:
            raise ValueError(f"mode_token_ids lacks {sorted(missing)}; give a token to every mode, or to none")
        return self


def ul2(documents: Documents, draws: Draws, config: UL2Config) -> list[SourceTarget]:
    """A pair of each document by a denoiser drawn for it; those of a single token are left out.

    Raises:
        ConfigError: a document has more spans than there are sentinels.
    """
    shares = np.cumsum([denoiser.weight for denoiser in config.denoisers])
    pairs = []
    for ids in (ids for ids in documents if len(ids) > 1):
        place = np.searchsorted(shares, draws.uniform(1)[0] * shares[-1], side="right")
        denoiser = config.denoisers[int(place)]
        if denoiser.mode == "S":
            most = max(1, min(round(2 * denoiser.noise_density * len(ids)), len(ids) - 1))
            hidden = np.arange(len(ids)) >= len(ids) - 1 - draws.below(most)
        else:
            hidden = draw_spans(len(ids), draws, denoiser.noise_density, denoiser.mean_noise_span_length)
        pair = hide_spans(ids, hidden, config.sentinel_token_ids, config.eos_token_id)
        mode = [config.mode_token_ids[denoiser.mode]] if config.mode_token_ids else []
        pairs.append(SourceTarget(np.concatenate([np.array(mode, np.int64), pair.source]), pair.target))
    return pairs
