"""The factor that keeps float16 gradients between underflow and overflow. Knows no model and decides on no step.

Small gradients vanish in float16, so the loss is multiplied before the backward pass and gradients are divided
after it, in float32 (Micikevicius et al., 2018, arXiv:1710.03740).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lmworks.core.config import Config


class LossScaleConfig(Config):
    """Dynamic loss scaling, with DeepSpeed's names and defaults."""

    initial_scale_power: Annotated[int, Field(ge=0, le=32)] = 16
    """The first scale of the mean loss is 2 to this power."""
    loss_scale_window: Annotated[int, Field(gt=0)] = 1000
    """Updates without overflow after which the scale doubles."""
    hysteresis: Annotated[int, Field(gt=0)] = 2
    """Overflows after which the scale is halved; from then on each halves it, until it doubles again."""
    min_loss_scale: Annotated[float, Field(gt=0)] = 1.0
    """A gradient that is not finite at this scale is not finite for another reason."""


class DynamicLossScale:
    """The scale of now. It is a power of two where it starts as one, so that scaling rounds nothing.

    Args:
        config: how it moves.
    """

    def __init__(self, config: LossScaleConfig) -> None:
        self.config = config
        self.scale = 2.0**config.initial_scale_power
        self._good, self._tolerated = 0, config.hysteresis

    @property
    def can_lower(self) -> bool:
        """Whether a smaller scale may be tried."""
        return self.scale > self.config.min_loss_scale

    def update(self, *, overflow: bool) -> None:
        """Learn how a step went."""
        if overflow:
            self._good = 0
            if self._tolerated > 1:
                self._tolerated -= 1
            else:
                self.scale = max(self.scale / 2, self.config.min_loss_scale)
            return
        self._good += 1
        if self._good == self.config.loss_scale_window:
            self._good, self._tolerated = 0, self.config.hysteresis
            self.scale *= 2

    def state_dict(self) -> dict[str, Tensor]:
        """Scale, updates since it changed, overflows that are still tolerated."""
        return {"values": torch.tensor([self.scale, self._good, self._tolerated], dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave."""
        scale, good, tolerated = state["values"].tolist()
        self.scale, self._good, self._tolerated = scale, int(good), int(tolerated)
