"""Transformer-XL's attention by distance (arXiv:1901.02860), with the segments of XLNet (arXiv:1906.08237).

The score of a query i and a key j is

    (q_i + w) · k_j  +  (q_i + r) · R s(i - j)  +  (q_i + s) · (same segment? e_0 : e_1)

where s(d) are the sines and cosines of a distance and R projects them. A sine of a difference is a sum of products of
sines and cosines of i and of j, so all three terms are one product of longer vectors. Any context can therefore attend
as it does elsewhere, and memory grows linearly with the document; the price is D + E + segments numbers per head
instead of D, which for documents of more than E/2 tokens is less than the usual table of all distances.

Legend: `N` packed tokens, `H` heads, `D` head dim, `E` model dim, `S` segments.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmworks.kernels.masks import Mask
from lmworks.kernels.scores import Scores
from lmworks.nn.attention_context import AttentionContext
from lmworks.nn.positions import PositionSignal


class XLAttention(nn.Module):
    """Attention whose scores know distances by a trained projection of sinusoids.

    Args:
        layer: index, for caches.
        hidden_size: E, even.
        num_heads: H.
        head_dim: D.
        mask: what a token sees in its own document.
    """

    def __init__(self, layer: int, hidden_size: int, num_heads: int, head_dim: int, *, mask: Mask) -> None:
        super().__init__()
        self.layer, self.head_dim, self.mask = layer, head_dim, mask
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(hidden_size, num_heads * head_dim, bias=False) for _ in range(3)
        )
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)
        self.r_proj = nn.Parameter(torch.empty(num_heads, head_dim, hidden_size))
        self.r_w_bias, self.r_r_bias, self.r_s_bias = (nn.Parameter(torch.empty(num_heads, head_dim)) for _ in range(3))
        self.seg_embed = nn.Parameter(torch.empty(2, num_heads, head_dim))

    def forward(self, x: Tensor, signal: PositionSignal, context: AttentionContext) -> Tensor:
        """[N, E] -> [N, E].

        Args:
            x: [N, E].
            signal: sinusoids of each token's position; segments, where they are to be told apart.
            context: how keys and values are reached.
        """
        assert signal.sinusoids is not None, 'this attention needs "relative_sinusoidal" positions'
        query, key, value = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        queries, keys = [query + self.r_w_bias], [key]
        for ours, theirs in (self._distances(query, signal.sinusoids), self._segments(query, signal.segments)):
            queries.append(ours)
            keys.append(theirs[:, None].expand(-1, key.shape[1], -1).to(key.dtype))
        scores = Scores(self.head_dim**-0.5, self.mask)
        attended = context.attend(self.layer, torch.cat(queries, -1), torch.cat(keys, -1), value, scores)
        return self.o_proj(attended.flatten(-2))

    def _distances(self, query: Tensor, sinusoids: Tensor) -> tuple[Tensor, Tensor]:
        """[N, H, E] and [N, E], whose products are (q_i + r) · R s(i - j)."""
        projected = torch.einsum("nhd,hde->nhe", query + self.r_r_bias, self.r_proj)
        sine, cosine = projected.chunk(2, -1)
        own_sine, own_cosine = sinusoids[:, None].chunk(2, -1)
        # sin(i - j) = sin i cos j - cos i sin j and cos(i - j) = cos i cos j + sin i sin j
        to_sine = cosine * own_sine - sine * own_cosine
        to_cosine = sine * own_sine + cosine * own_cosine
        return torch.cat([to_sine, to_cosine], -1), sinusoids

    def _segments(self, query: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
        """[N, H, S] and [N, S], whose products are (q_i + s) · e; S is 0 where segments are not given."""
        if segments is None:
            return query[..., :0], query[:, 0, :0]
        same, other = torch.einsum("nhd,shd->snh", query + self.r_s_bias, self.seg_embed)
        member = nn.functional.one_hot(segments)
        return torch.where(member[:, None] == 1, same[..., None], other[..., None]), member
