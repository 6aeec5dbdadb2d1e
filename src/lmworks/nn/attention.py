"""Multi-head attention with grouped keys and values. Where they come from is the context's business."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmworks.kernels.masks import Mask
from lmworks.kernels.scores import Scores
from lmworks.nn.attention_context import AttentionContext
from lmworks.nn.positions import PositionSignal


class Attention(nn.Module):
    """Projects to queries, keys and values, normalizes and turns them, attends, projects back.

    Args:
        layer: index, for caches.
        hidden_size: E.
        num_heads: H.
        num_kv_heads: K, a divisor of H.
        head_dim: D.
        mask: what a token sees in its own document.
        scale: multiplies the scores; None is D^-0.5.
        softcap: of the scores.
        qkv_bias: of the three projections in.
        o_bias: of the projection out.
        sinks: whether each head has a trained score for attending to nothing.
        qk_norms: of queries and keys before the rotation.
        norm_heads: the norms see one head at a time, else the whole projection.
        cross: keys and values come from the encoder's output.
    """

    q_norm: nn.Module | None
    k_norm: nn.Module | None
    sinks: nn.Parameter | None

    def __init__(
        self, layer: int, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int, *, mask: Mask,
        scale: float | None = None, softcap: float | None = None, qkv_bias: bool = False, o_bias: bool = False,
        sinks: bool = False, qk_norms: tuple[nn.Module, nn.Module] | None = None, norm_heads: bool = True,
        cross: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layer, self.head_dim, self.norm_heads, self.cross = layer, head_dim, norm_heads, cross
        self.mask, self.softcap = mask, softcap
        self.scale = head_dim**-0.5 if scale is None else scale
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=o_bias)
        self.q_norm, self.k_norm = qk_norms if qk_norms is not None else (None, None)
        self.register_parameter("sinks", nn.Parameter(torch.zeros(num_heads)) if sinks else None)

    def reset_parameters(self) -> None:
        """Begin with sinks that take an average weight."""
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)

    def forward(
        self, x: Tensor, signal: PositionSignal, context: AttentionContext, memory: Tensor | None = None
    ) -> Tensor:
        """[N, E] -> [N, E].

        Args:
            x: [N, E].
            signal: what positions do to queries, keys and scores.
            context: how keys and values are reached.
            memory: [M, E] output of the encoder that is new in this step, for cross-attention only.
        """
        scores = Scores(self.scale, self.mask, self.softcap, signal.bias, self.sinks)
        query = self._heads(self.q_proj(x), self.q_norm)
        if self.cross:
            key = None if memory is None else self._heads(self.k_proj(memory), self.k_norm)
            value = None if memory is None else self._heads(self.v_proj(memory), None)
            return self.o_proj(context.cross_attend(self.layer, query, key, value, scores).flatten(-2))
        key, value = self._heads(self.k_proj(x), self.k_norm), self._heads(self.v_proj(x), None)
        if signal.rotation is not None:
            query, key = signal.rotation(query), signal.rotation(key)
        return self.o_proj(context.attend(self.layer, query, key, value, scores).flatten(-2))

    def _heads(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        """[N, heads·D] -> [N, heads, D], normalized."""
        if norm is not None and not self.norm_heads:
            x = norm(x)
        x = x.view(len(x), -1, self.head_dim)
        return norm(x) if norm is not None and self.norm_heads else x
