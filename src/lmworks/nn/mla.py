"""Multi-head latent attention: keys and values of all heads come from one small vector per token, the latent.

DeepSeek-V2 (arXiv:2405.04434, section 2.1). Expanded, it is ordinary attention over keys and values made from the
latent; absorbed, the matrices that make them move to the other side of the products, and every head attends over
the latents themselves, so that a cache holds R + P numbers per token instead of H·(D + P + Dv). Knows no cache.

Legend: `N` tokens, `E` model dim, `H` heads, `R` latent rank, `D` coordinates of a head without positions, `P` rotated
ones, `Dv` of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmworks.kernels.masks import Mask
from lmworks.kernels.scores import Scores
from lmworks.nn.attention_context import AttentionContext
from lmworks.nn.norms import RMSNorm
from lmworks.nn.positions import PositionSignal
from lmworks.nn.quantized import QuantizedLinear


class MultiheadLatentAttention(nn.Module):
    """Attention over a shared latent, with the position in P coordinates of its own (decoupled RoPE).

    Args:
        layer: index, for caches.
        hidden_size: E.
        num_heads: H.
        q_lora_rank: rank of the queries' own compression; None projects them directly.
        kv_lora_rank: R.
        qk_nope_head_dim: D.
        qk_rope_head_dim: P.
        v_head_dim: Dv.
        mask: what a token sees in its own document.
        scale: multiplies the scores; None is (D + P)^-0.5.
        bias: of the projections to the compressed vectors and back to E.
        norm_eps: of the norms over the compressed vectors.
    """

    def __init__(
        self, layer: int, hidden_size: int, num_heads: int, *, q_lora_rank: int | None, kv_lora_rank: int,
        qk_nope_head_dim: int, qk_rope_head_dim: int, v_head_dim: int, mask: Mask, scale: float | None = None,
        bias: bool = False, norm_eps: float = 1e-6,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layer, self.mask = layer, mask
        self.kv_lora_rank, self.v_head_dim = kv_lora_rank, v_head_dim
        self.nope, self.rope = qk_nope_head_dim, qk_rope_head_dim
        self.scale = (self.nope + self.rope) ** -0.5 if scale is None else scale
        self.query_size = num_heads * (self.nope + self.rope)
        if q_lora_rank is None:
            self.q_proj = nn.Linear(hidden_size, self.query_size, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden_size, q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(q_lora_rank, norm_eps)
            self.q_b_proj = nn.Linear(q_lora_rank, self.query_size, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden_size, kv_lora_rank + self.rope, bias=bias)
        self.kv_a_layernorm = RMSNorm(kv_lora_rank, norm_eps)
        self.kv_b_proj: nn.Linear | QuantizedLinear = nn.Linear(
            kv_lora_rank, num_heads * (self.nope + v_head_dim), bias=False
        )
        self.o_proj = nn.Linear(num_heads * v_head_dim, hidden_size, bias=bias)

    def forward(self, x: Tensor, signal: PositionSignal, context: AttentionContext) -> Tensor:
        """[N, E] -> [N, E]; absorbed exactly where `context.latent` is set."""
        latent, key_turned = torch.split(self.kv_a_proj_with_mqa(x), [self.kv_lora_rank, self.rope], -1)
        latent, key_turned = self.kv_a_layernorm(latent)[:, None], key_turned[:, None]
        query, query_turned = torch.split(self._queries(x), [self.nope, self.rope], -1)
        if signal.rotation is not None:
            query_turned, key_turned = signal.rotation(query_turned), signal.rotation(key_turned)
        attend = self._absorbed if context.latent else self._expanded
        scores = Scores(self.scale, self.mask, bias=signal.bias)
        return self.o_proj(attend(query, query_turned, latent, key_turned, context, scores).flatten(-2))

    def _queries(self, x: Tensor) -> Tensor:
        """[N, E] -> [N, H, D + P]."""
        direct = self.q_proj(x) if hasattr(self, "q_proj") else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        return direct.unflatten(-1, (-1, self.nope + self.rope))

    def _expanded(
        self, query: Tensor, query_turned: Tensor, latent: Tensor, key_turned: Tensor, context: AttentionContext,
        scores: Scores,
    ) -> Tensor:  # fmt: skip
        """[N, H, D], [N, H, P], [N, 1, R], [N, 1, P] -> [N, H, Dv]."""
        heads = query.shape[1]
        both = self.kv_b_proj(latent).view(-1, heads, self.nope + self.v_head_dim)
        key, value = torch.split(both, [self.nope, self.v_head_dim], -1)
        key = torch.cat([key, key_turned.expand(-1, heads, -1)], -1)
        return context.attend(self.layer, torch.cat([query, query_turned], -1), key, value, scores)

    def _absorbed(
        self, query: Tensor, query_turned: Tensor, latent: Tensor, key_turned: Tensor, context: AttentionContext,
        scores: Scores,
    ) -> Tensor:  # fmt: skip
        """As `_expanded`, by q·(U c) = (Uᵀ q)·c and Σ a·(V c) = V Σ a·c."""
        both = self.kv_b_proj
        weight = both.dequantized(query.dtype) if isinstance(both, QuantizedLinear) else both.weight
        up = weight.view(query.shape[1], self.nope + self.v_head_dim, self.kv_lora_rank)
        to_key, to_value = torch.split(up, [self.nope, self.v_head_dim], 1)
        query = torch.cat([torch.einsum("nhd,hdr->nhr", query, to_key), query_turned], -1)
        key = torch.cat([latent, key_turned], -1)
        mixed = context.attend(self.layer, query, key, key[..., : self.kv_lora_rank], scores)
        return torch.einsum("nhr,hdr->nhd", mixed, to_value)
