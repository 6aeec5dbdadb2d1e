"""One pre-norm Transformer block."""

from __future__ import annotations

from torch import Tensor, nn

from lmworks.nn.attention import Attention
from lmworks.nn.attention_context import AttentionContext


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, self_attn: Attention, mlp: nn.Module, input_layernorm: nn.Module, post_attention_layernorm: nn.Module
    ) -> None:
        super().__init__()
        self.input_layernorm = input_layernorm
        self.self_attn = self_attn
        self.post_attention_layernorm = post_attention_layernorm
        self.mlp = mlp

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None, context: AttentionContext) -> Tensor:
        """[N, E] -> [N, E]."""
        x = x + self.self_attn(self.input_layernorm(x), rope, context)
        return x + self.mlp(self.post_attention_layernorm(x))
