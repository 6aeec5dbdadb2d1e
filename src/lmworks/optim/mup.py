"""Learning rates and initial weights that keep their meaning when a model grows: muP and its check.

Tune on a narrow, shallow model; set `width_multiplier` and `depth_multiplier`, and the same settings serve the
large one. Roles and names tell what a parameter is; no model class is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmworks.core.errors import ConfigError
from lmworks.optim.algorithms import ALGORITHMS, OptimizerConfig
from lmworks.optim.param_groups import Role, has_tied_head, parameter_roles

INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight", "experts.down_proj")
"""Ends of the names of projections back into the residual stream, as Hugging Face names them."""

_ENTRYWISE: dict[Role, float] = {"matrix": -1.0, "experts": -1.0, "head": -1.0}
"""Steps of one size for each entry: their sum over the fan-in must not grow (arXiv:2203.03466, table 3)."""
_RELATIVE: dict[Role, float] = {"matrix": -0.5, "experts": -0.5}
"""Steps as long as the parameter, whose entries shrink with the root of the width already."""
WIDTH_EXPONENTS: dict[str, dict[Role, float]] = {
    "adamw": _ENTRYWISE,
    "adam": _ENTRYWISE,
    "lion": _ENTRYWISE,
    "muon": {**_ENTRYWISE, "matrix": 0.0},  # its steps have the same spectral norm at every width (arXiv:2310.17813)
    "lamb": _RELATIVE,
    "adafactor": _RELATIVE,
}
"""Learning rate by optimizer and role, as a power of the width; roles that are absent keep theirs."""
_INITIAL_EXPONENTS: dict[Role, float] = {"matrix": -0.5, "experts": -0.5, "head": -1.0}


def learning_rate_multipliers(model: nn.Module, config: OptimizerConfig) -> dict[str, float]:
    """What each trainable parameter's learning rate is multiplied by; {} where nothing is scaled.

    In depth, branches are meant to be initialized at 1/√layers (the model's "depth_scaled"), and steps inside
    and at the end of a branch shrink so that all layers together move the stream as much as before
    (arXiv:2310.02244, with the branch's multiplier folded into its last projection).

    Raises:
        ConfigError: the optimizer has no rule, or the head is tied to the embedding and cannot be scaled alone.
    """
    width, depth = config.width_multiplier, config.depth_multiplier
    if width == depth == 1.0:
        return {}
    _require_scalable(model, config)
    exponents = WIDTH_EXPONENTS[config.kind]
    relative = exponents is _RELATIVE
    multipliers = {}
    for name, role in parameter_roles(model).items():
        inside = role in ("matrix", "experts")
        end = inside and not relative and name.endswith(INTO_RESIDUAL)
        by_depth = depth ** (-1.0 if end else -0.5) if inside else 1.0
        multipliers[name] = width ** exponents.get(role, 0.0) * by_depth
    return multipliers


@torch.no_grad()
def scale_initial_weights(model: nn.Module, config: OptimizerConfig) -> None:
    """Shrink freshly drawn weights for the model's width, in place; nothing at `width_multiplier` 1.

    For weights drawn with one deviation at every width, as `initializer_range` does: hidden matrices are
    divided by the root of the multiplier, an untied head by the multiplier.

    Raises:
        ConfigError: as `learning_rate_multipliers` does.
    """
    if config.width_multiplier == 1.0:
        return
    _require_scalable(model, config)
    named = dict(model.named_parameters())
    for name, role in parameter_roles(model).items():
        named[name].mul_(config.width_multiplier ** _INITIAL_EXPONENTS.get(role, 0.0))


def _require_scalable(model: nn.Module, config: OptimizerConfig) -> None:
    if config.kind not in WIDTH_EXPONENTS:
        raise ConfigError(
            f"width_multiplier and depth_multiplier have no rule for {config.kind!r}",
            f"Use one of {', '.join(k for k in ALGORITHMS if k in WIDTH_EXPONENTS)}, or leave both at 1",
        )
    if config.width_multiplier != 1.0 and has_tied_head(model):
        raise ConfigError(
            "width_multiplier scales the output layer, and here it is tied to the embedding, which must keep its size",
            "Set tie_word_embeddings to false, or leave width_multiplier at 1",
        )


@dataclass(frozen=True)
class Coordinate:
    """How far training has moved one module's output at one width."""

    width: int
    step: int
    """Updates done."""
    module: str
    change: float
    """Mean magnitude of the difference from the output before training, on the same input."""


def coordinate_check(
    build: Callable[[int], tuple[nn.Module, Callable[[float], None]]],
    loss: Callable[[nn.Module], Tensor],
    widths: Sequence[int],
    steps: int = 3,
) -> list[Coordinate]:
    """Train models of several widths a few steps on one batch and watch their activations.

    Args:
        build: from a width to a fresh model and its optimizer's step, given a factor of the learning rate.
        loss: of a model on the one batch.
        widths: ascending; at least two.
        steps: updates.

    Returns:
        one row per width, step from 1, and linear or embedding module.
    """
    rows = []
    for width in widths:
        model, update = build(width)
        initial = _outputs(model, loss)
        for step in range(1, steps + 1):
            model.zero_grad(set_to_none=True)
            torch.autograd.backward(loss(model))
            update(1.0)
            now = _outputs(model, loss)
            rows += [Coordinate(width, step, k, float((now[k] - initial[k]).abs().mean())) for k in now]
    return rows


def growth_with_width(rows: Sequence[Coordinate]) -> dict[str, float]:
    """Slope of log(change) over log(width) for each module after the last step.

    Near 0 everywhere: settings carry over. Near 1: outputs blow up in wider models; well below 0: they freeze.
    """
    last = max(row.step for row in rows)
    slopes = {}
    for module in dict.fromkeys(row.module for row in rows):
        found = [row for row in rows if row.module == module and row.step == last]
        widths, changes = np.log([r.width for r in found]), np.log([max(r.change, 1e-30) for r in found])
        slopes[module] = float(np.polyfit(widths, changes, 1)[0])
    return slopes


@torch.no_grad()
def _outputs(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    """What every linear and embedding module gives."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs[name] = output.detach().float().clone()

    handles = [
        module.register_forward_hook(partial(keep, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    ]
    try:
        loss(model)
    finally:
        for handle in handles:
            handle.remove()
    return outputs
