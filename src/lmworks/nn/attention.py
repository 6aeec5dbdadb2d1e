"""Multi-head self-attention with grouped keys and values. Where they come from is the context's business."""

from __future__ import annotations

from torch import Tensor, nn

from lmworks.nn.attention_context import AttentionContext
from lmworks.nn.norms import RMSNorm
from lmworks.nn.rope import apply_rope


class Attention(nn.Module):
    """Projects to queries, keys and values, turns them, attends, projects back."""

    def __init__(
        self,
        layer: int,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool = False,
        o_bias: bool = False,
        qk_norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, head_dim
        self.scale = head_dim**-0.5
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=o_bias)
        self.q_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None
        self.k_norm = RMSNorm(head_dim, qk_norm_eps) if qk_norm_eps is not None else None

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None, context: AttentionContext) -> Tensor:
        """[N, E] -> [N, E]; `rope` is the (cos, sin) of the tokens' positions, or None."""
        query, key, value = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if rope is not None:
            query, key = apply_rope(query, *rope), apply_rope(key, *rope)
        return self.o_proj(context.attend(self.layer, query, key, value, self.scale).flatten(-2))
