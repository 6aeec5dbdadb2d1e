"""LoRA: a frozen linear layer plus a trained product of two thin matrices. Knows one layer, not where it sits.

Hu et al., 2021, arXiv:2106.09685; the rank-stabilized scaling is Kalajdzievski, 2023, arXiv:2312.03732.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lmworks.core.config import Config


class LoraConfig(Config):
    """Low-rank adaptation, with PEFT's names."""

    r: Annotated[int, Field(gt=0)] = 8
    """Rank of the update."""
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    """The update is scaled by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs dropped in training."""
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Ends of the names of the layers to adapt, such as `q_proj`; `all-linear` is every one but the head."""
    use_rslora: bool = False
    """Scale by lora_alpha / √r instead, which lets high ranks learn."""

    @property
    def scaling(self) -> float:
        """Factor of the update."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


class LoraLinear(nn.Module):
    """base(x) + scaling · B(A(dropout(x))). It begins as the base layer, since B begins as zero.

    The adapter is kept in float32 whatever the type of the base.

    Args:
        base_layer: the layer to adapt; it is frozen.
        config: rank and scaling.
        generator: draws A; None is torch's global generator.
    """

    def __init__(self, base_layer: nn.Linear, config: LoraConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.scaling = config.scaling
        device, inputs, outputs = base_layer.weight.device, base_layer.in_features, base_layer.out_features
        self.lora_A = nn.Linear(inputs, config.r, bias=False, device=device, dtype=torch.float32)
        self.lora_B = nn.Linear(config.r, outputs, bias=False, device=device, dtype=torch.float32)
        self.lora_dropout = nn.Dropout(config.lora_dropout)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        result: Tensor = self.base_layer(x)
        update = self.lora_B(self.lora_A(self.lora_dropout(x.to(self.lora_A.weight.dtype))))
        return result + (self.scaling * update).to(result.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer with the update added into its weight (in place)."""
        weight = self.base_layer.weight
        update = self.scaling * (self.lora_B.weight @ self.lora_A.weight)
        weight.copy_((weight.float() + update).to(weight.dtype))
        return self.base_layer
