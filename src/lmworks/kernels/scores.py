"""What happens to q·k before the softmax, the same for every kernel: scale, soft cap, bias, mask, sinks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lmworks.kernels.masks import Causal, Mask, Places

ScoreBias = Callable[[Tensor, Tensor], Tensor]
"""From the positions of queries [Q] and keys [K] to what is added to their scores, [H, Q, K] (ALiBi, T5)."""


@dataclass(frozen=True, eq=False)
class DistanceBias:
    """A score falls by slope · distance (ALiBi, arXiv:2108.12409)."""

    slopes: Tensor
    """[H]."""

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        """See `ScoreBias`."""
        return -self.slopes[:, None, None] * (query[:, None] - key[None, :]).abs()


@dataclass(frozen=True, eq=False)
class Scores:
    """The rule of one attention layer."""

    scale: float
    mask: Mask = Causal()  # noqa: RUF009  # frozen and stateless
    softcap: float | None = None
    """Scores become cap · tanh(score / cap)."""
    bias: ScoreBias | None = None
    sinks: Tensor | None = None
    """[H] scores of a key that is seen by all and has no value."""

    @property
    def plain(self) -> bool:
        """Nothing but scale and mask."""
        return self.softcap is None and self.bias is None and self.sinks is None


def attention_formula(query: Tensor, key: Tensor, value: Tensor, scores: Scores, places: Places) -> Tensor:
    """softmax(rule(q kᵀ)) v, written out; every kernel's oracle.

    Args:
        query: [..., H, Q, D].
        key: [..., H, K, D].
        value: [..., H, K, Dv].
        scores: the rule.
        places: of queries and keys, broadcastable to [..., Q, K]; the bias takes positions of one dimension.

    Returns:
        [..., H, Q, Dv]; zero where a query sees nothing.
    """
    raw = query @ key.mT * scores.scale
    if scores.softcap is not None:
        raw = scores.softcap * torch.tanh(raw / scores.softcap)
    if scores.bias is not None:
        raw = raw + scores.bias(places.query.flatten(), places.key.flatten()).to(raw.dtype)
    allowed = scores.mask(places).unsqueeze(-3)
    # Finite, so that a query that sees nothing gets no NaN in either pass; its mean over all keys is zeroed below.
    raw = raw.masked_fill(~allowed, torch.finfo(raw.dtype).min)
    if scores.sinks is not None:
        sink = scores.sinks.to(raw.dtype)[:, None, None].expand(*raw.shape[:-1], 1)
        weights = torch.cat([raw, sink], -1).softmax(-1)[..., :-1]
    else:
        weights = raw.softmax(-1)
    return (weights @ value).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
