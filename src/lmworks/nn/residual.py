"""How a branch joins the residual stream: plainly, by a constant, or by a trained gate that starts closed."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """x + multiplier · gate · dropout(branch).

    Args:
        hidden_size: E.
        multiplier: a constant (Granite).
        gate: "none"; "rezero", one number from 0 (arXiv:2003.04887); "layerscale", a vector (arXiv:2103.17239).
        layerscale_init: where that vector starts.
        dropout: probability of dropping an element of the branch.
    """

    gate: nn.Parameter | None

    def __init__(
        self, hidden_size: int, *, multiplier: float = 1.0, gate: str = "none", layerscale_init: float = 1e-4,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.multiplier, self.dropout = multiplier, dropout
        self._start = 0.0 if gate == "rezero" else layerscale_init
        size = {"none": None, "rezero": 1, "layerscale": hidden_size}[gate]
        self.register_parameter("gate", None if size is None else nn.Parameter(torch.empty(size)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin with the gate nearly closed."""
        if self.gate is not None:
            nn.init.constant_(self.gate, self._start)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """[N, E], [N, E] -> [N, E]."""
        if self.dropout:
            branch = nn.functional.dropout(branch, self.dropout, self.training)
        if self.gate is not None:
            branch = branch * self.gate
        return x + (branch if self.multiplier == 1.0 else branch * self.multiplier)
