"""The position-wise feed-forward net, plain or gated."""

from __future__ import annotations

from torch import Tensor, nn

from lmworks.kernels.gated_activation import ACTIVATIONS, gated


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)) when gated (SwiGLU, GeGLU: arXiv:2002.05202), else down(act(up(x)))."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str, *, gated: bool, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias) if gated else None
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.hidden_act, self.activation = hidden_act, ACTIVATIONS[hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """[N, E] -> [N, E]."""
        if self.gate_proj is None:
            return self.down_proj(self.activation(self.up_proj(x)))
        return self.down_proj(gated(self.gate_proj(x), self.up_proj(x), self.hidden_act))
