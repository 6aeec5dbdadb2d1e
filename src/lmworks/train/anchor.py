"""Staying near the weights a run began with: L2 to the initial weights, and elastic weight consolidation.

EWC (Kirkpatrick et al., 2017, arXiv:1612.00796) weighs each weight's distance by how much the old data cares about it:
the diagonal of the Fisher information. Knows no files and no data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lmworks.core.config import Config
from lmworks.core.errors import CheckpointError
from lmworks.nn.batch import Batch
from lmworks.objectives.loss import Loss
from lmworks.optim.param_groups import trainable
from lmworks.train.callbacks import TellsSteps
from lmworks.train.step import Objective


class AnchorConfig(Config):
    """How strongly a run is held at the weights it began with."""

    kind: Literal["l2", "ewc"] = "l2"
    """`l2` weighs all weights alike, `ewc` by their Fisher information on the old data."""
    strength: Annotated[float, Field(gt=0)]
    """Half of it times the weighted squared distance is added to the mean loss of a target."""
    fisher: Path | None = None
    """Folder that `lmworks fisher` made of the model the run begins with; `ewc` needs it."""

    @model_validator(mode="after")
    def _has_fisher(self) -> Self:
        if (self.kind == "ewc") != (self.fisher is not None):
            raise ValueError("`fisher` is given exactly with the kind ewc; make it with `lmworks fisher`")
        return self


class AnchoredObjective:
    """An objective plus strength/2 · Σ importance · (weight - initial weight)², weighted like a mean over targets.

    The distance is that of the float32 weights, whose gradient it reaches directly: in a bfloat16 copy, small
    distances would be rounded away.

    Args:
        objective: of the tokens.
        master: whose trainable weights, as they are now, are the anchor.
        strength: of the whole.
        importance: weights of the squared distances by parameter name; None weighs all with 1.

    Raises:
        CheckpointError: `importance` is of another model.
    """

    def __init__(
        self, objective: Objective, master: nn.Module, strength: float, importance: Mapping[str, Tensor] | None = None
    ) -> None:
        own = dict(trainable(master))
        if importance is not None:
            odd = sorted(n for n in {*own, *importance}
                         if n not in own or n not in importance or importance[n].shape != own[n].shape)  # fmt: skip
            if odd:
                raise CheckpointError(
                    f"the Fisher information and the model differ in {len(odd)} parameters, among them {odd[0]!r}",
                    "Estimate it with `lmworks fisher` on the model that this run begins with",
                )
        self.objective, self.strength = objective, strength
        self._terms = [
            (p, p.detach().clone(), None if importance is None else importance[n].to(p)) for n, p in own.items()
        ]

    def penalty(self) -> Tensor:
        """strength/2 · Σ importance · (weight - initial weight)², a differentiable scalar."""
        squares = [
            ((p - start).square() if weight is None else weight * (p - start).square()).sum()
            for p, start, weight in self._terms
        ]
        return self.strength / 2 * torch.stack(squares).sum()

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """The whole loss; `anchor_penalty` is among the metrics."""
        loss = self.objective(model, batch)
        penalty = self.penalty() * loss.n_targets
        return Loss(loss.loss_sum + penalty, loss.n_targets, {**loss.metrics, "anchor_penalty": penalty.detach()})

    def step_done(self, **ended: Any) -> Mapping[str, float]:
        """Passed on to the objective of the tokens; see `TellsSteps`."""
        return self.objective.step_done(**ended) if isinstance(self.objective, TellsSteps) else {}


def diagonal_fisher(
    model: nn.Module, objective: Objective, rows: Callable[[int], Batch], count: int
) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information, per target.

    That is Σ over rows of the squared gradient of the row's loss, divided by all targets: gradients of different
    targets are uncorrelated where the model is right, so a row's squared gradient stands for the sum over its targets.

    Args:
        model: left as it was; its trainable parameters count.
        objective: a negative log-likelihood, such as `causal_lm`.
        rows: gives one row of the old data.
        count: rows to take.

    Returns:
        Parameter name to float32 tensor of its shape; 0 where no gradient came.
    """
    parameters = dict(trainable(model))
    device = next(iter(parameters.values())).device
    fisher = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    was_training, targets = model.training, 0.0
    model.eval()
    for number in range(count):
        loss = objective(model, rows(number).to(device))
        gradients = torch.autograd.grad(loss.loss_sum, list(parameters.values()), allow_unused=True)
        for total, gradient in zip(fisher.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient.float().square()
        targets += float(loss.n_targets)
    model.train(was_training)
    return {name: total / max(targets, 1.0) for name, total in fisher.items()}
