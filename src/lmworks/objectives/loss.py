"""What every objective returns: a sum and a count, never a mean. Knows no objective and no trainer.

Means cannot be added: a mean per micro-batch weighs the tokens of a short one more than those of a
long one. The trainer adds sums over the whole step and divides once by the step's count.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """Sums over the targets of one batch."""

    loss_sum: Tensor
    """Scalar float32, differentiable."""
    n_targets: Tensor
    """Scalar: the sum of the loss weights, by which the trainer divides."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Further sums over the same targets, detached; reported divided by the same count."""
