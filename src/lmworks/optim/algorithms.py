"""The choice of an optimizer by name: its settings, and a table of how each is built and what state it keeps.

torch's own where torch has one. Knows no model, no schedule and no files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from lmworks.core.config import Config
from lmworks.optim.lamb import Lamb
from lmworks.optim.lion import Lion
from lmworks.optim.shards import layout
from lmworks.optim.soap import LONGEST_SIDE, SIDES, Soap

Rate = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Kind = Literal["adamw", "muon", "adam", "sgd", "adafactor", "lamb", "lion", "soap"]
MUON_LR = 0.02


class OptimizerConfig(Config):
    """What updates the weights."""

    kind: Kind = "muon"
    """`muon` (Jordan et al., 2024) and `soap` (arXiv:2409.11321) take the hidden matrices and leave embeddings,
    head, norms, biases and stacked experts to AdamW; `adamw` (arXiv:1711.05101), `adam`, `sgd`, `adafactor`
    (arXiv:1804.04235), `lamb` (arXiv:1904.00962) and `lion` (arXiv:2302.06675) take everything."""
    lr: Rate = 3e-3
    """Peak learning rate. The default suits AdamW; Lion wants 3 to 10 times less, plain SGD far more."""
    matrix_lr: Rate | None = None
    """Peak learning rate of the hidden matrices; by default 0.02 under Muon and `lr` otherwise."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay of the first and second moment of Adam, LAMB and SOAP; Lion's interpolation and decay."""
    eps: Rate = 1e-8
    """Added to the root of the second moment."""
    momentum: Beta = 0.95
    """Muon's and SGD's."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Applies to matrices and an untied head, never to embeddings, norms and biases. Decoupled from the
    gradient, except in `adam` and `sgd`, where it is added to it."""
    state_bits: Literal[8, 32] = 32
    """8 keeps the moments of parameters of 4,096 and more entries as block-wise dynamic bytes (arXiv:2110.02861)."""
    width_multiplier: Rate = 1.0
    """hidden_size over that of the model whose learning rates these are (muP, arXiv:2203.03466): scales them for
    each parameter, so that what was tuned on a narrow model serves a wide one. Heads and inner sizes grow alike."""
    depth_multiplier: Rate = 1.0
    """num_hidden_layers over that of the model whose learning rates these are (arXiv:2310.02244)."""

    offload_state: bool = False
    """Keep moments in host memory and fetch those of one parameter at a time: less device memory, slower updates."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.offload_state and self.state_bits == 8:
            raise ValueError("offload_state moves whole moments; choose it or state_bits 8")
        if self.state_bits == 8 and self.kind == "adafactor":
            raise ValueError("adafactor keeps factored state already; state_bits 8 is for the others")
        return self

    @property
    def peak_matrix_lr(self) -> float:
        """The peak learning rate of the hidden matrices."""
        return self.matrix_lr or (MUON_LR if self.kind == "muon" else self.lr)


@dataclass(frozen=True)
class Algorithm:
    """One row of the table."""

    build: Callable[[list[dict[str, Any]], OptimizerConfig], torch.optim.Optimizer]
    """From groups, each with its own `lr` and `weight_decay`."""
    slots: Callable[[nn.Parameter, OptimizerConfig], frozenset[str]]
    """Names of the state that a parameter has after its first update."""
    matrices_only: bool = False
    """Takes the hidden matrices; AdamW takes the rest."""
    entrywise: bool = False
    """Updates each entry by itself, so that parts of a parameter can be updated apart."""


def _always(*slots: str) -> Callable[[nn.Parameter, OptimizerConfig], frozenset[str]]:
    return lambda _parameter, _config: frozenset(slots)


def _are_whole(groups: list[dict[str, Any]]) -> bool:
    """Whether no parameter is divided among processes, for which torch has no fused SGD."""
    return all(layout(parameter) is None for group in groups for parameter in group["params"])


def _sgd_slots(_parameter: nn.Parameter, config: OptimizerConfig) -> frozenset[str]:
    return frozenset({"momentum_buffer"} if config.momentum else ())


def _adafactor_slots(parameter: nn.Parameter, _config: OptimizerConfig) -> frozenset[str]:
    return frozenset({"step", "row_var", "col_var"} if parameter.ndim > 1 else {"step", "variance"})


def _soap_slots(parameter: nn.Parameter, _config: OptimizerConfig) -> frozenset[str]:
    sides = [side for side, size in zip(SIDES, parameter.shape, strict=True) if size <= LONGEST_SIDE]
    return frozenset({"step", "exp_avg", "exp_avg_sq", *sides, *(f"{side}_basis" for side in sides)})


ALGORITHMS: dict[str, Algorithm] = {
    "adamw": Algorithm(
        lambda groups, c: torch.optim.AdamW(groups, betas=c.betas, eps=c.eps, fused=True),
        _always("step", "exp_avg", "exp_avg_sq"),
        entrywise=True,
    ),
    "adam": Algorithm(
        lambda groups, c: torch.optim.Adam(groups, betas=c.betas, eps=c.eps, fused=True),
        _always("step", "exp_avg", "exp_avg_sq"),
        entrywise=True,
    ),
    "sgd": Algorithm(
        lambda groups, c: torch.optim.SGD(groups, momentum=c.momentum, fused=_are_whole(groups)),
        _sgd_slots,
        entrywise=True,
    ),
    "adafactor": Algorithm(lambda groups, _c: torch.optim.Adafactor(groups), _adafactor_slots),
    "muon": Algorithm(
        lambda groups, c: torch.optim.Muon(groups, momentum=c.momentum), _always("momentum_buffer"), matrices_only=True
    ),
    "lion": Algorithm(lambda groups, c: Lion(groups, betas=c.betas), _always("exp_avg"), entrywise=True),
    "lamb": Algorithm(
        lambda groups, c: Lamb(groups, betas=c.betas, eps=c.eps), _always("step", "exp_avg", "exp_avg_sq")
    ),
    "soap": Algorithm(lambda groups, c: Soap(groups, betas=c.betas, eps=c.eps), _soap_slots, matrices_only=True),
}
