"""Loss as a function of parameters and tokens, fitted to a ladder of small runs: L(N, D) = E + A/N^α + B/D^β.

The form and the robust fit are Chinchilla's (arXiv:2203.15556, approach 3); all starts, and all resamples of the
bootstrap, are fitted at once as one batch. Knows no model and no trainer, only what runs left on record.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmworks.core.errors import DataError, TrainingError

HUBER_DELTA = 1e-3
"""Residuals of log loss beyond this count linearly: an odd run does not bend the law."""
FLOPS_PER_PARAMETER_TOKEN = 6.0
"""Forward and backward pass."""
FEWEST_RUNS = 6
"""One more than the constants of the law."""
CONFIDENCE = 0.95
_STARTS = tuple(product((0.1, 0.3, 0.5, 0.8, 1.2), (0.1, 0.3, 0.5, 0.8, 1.2), (0.3, 0.6, 0.9), (0.3, 0.7)))
"""α, β, share of the least loss that is E, share of the rest that is the model's size."""
_LEAST_EXPONENT, _LARGEST_EXPONENT = 1e-3, 3.0


@dataclass(frozen=True)
class Run:
    """One rung of a ladder."""

    parameters: float
    tokens: float
    loss: float
    """Nats per token (or any other measure that falls towards a floor)."""

    @property
    def flops(self) -> float:
        """Of training, by the rule of six per parameter and token."""
        return FLOPS_PER_PARAMETER_TOKEN * self.parameters * self.tokens


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = E + A/N^alpha + B/D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Predicted loss."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def optimum(self, flops: float) -> Run:
        """Parameters, tokens and loss of the best model that `flops` can train: the minimum at 6·N·D = flops."""
        balance = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        pairs = flops / FLOPS_PER_PARAMETER_TOKEN
        parameters = balance * pairs ** (self.beta / (self.alpha + self.beta))
        return Run(parameters, pairs / parameters, self.loss(parameters, pairs / parameters))


@dataclass(frozen=True)
class Interval:
    """A value and where it lies with a confidence of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ScalingFit:
    """A law and the laws of resampled ladders, which tell how sure it is."""

    law: ScalingLaw
    resampled: tuple[ScalingLaw, ...]
    runs: tuple[Run, ...]

    def constants(self) -> dict[str, Interval]:
        """Each constant of the law."""
        names = ("E", "A", "B", "alpha", "beta")
        return {n: _interval(getattr(self.law, n), [getattr(r, n) for r in self.resampled]) for n in names}

    def predict(self, parameters: float, tokens: float) -> Interval:
        """The loss of a run that was not made."""
        others = [law.loss(parameters, tokens) for law in self.resampled]
        return _interval(self.law.loss(parameters, tokens), others)

    def optimum(self, flops: float) -> dict[str, Interval]:
        """`parameters`, `tokens` and `loss` of the best model for a budget."""
        best, others = self.law.optimum(flops), [law.optimum(flops) for law in self.resampled]
        names = ("parameters", "tokens", "loss")
        return {n: _interval(getattr(best, n), [getattr(o, n) for o in others]) for n in names}


def read_ladder(paths: Iterable[Path], loss: str = "loss") -> list[Run]:
    """The runs of JSONL files and of model folders.

    Args:
        paths: files of one JSON object a line, with `parameters`, `tokens` and the loss; or folders that
            `lmworks pretrain` wrote, whose manifest holds these.
        loss: the field that is the loss, such as `validation_bits_per_byte`.

    Raises:
        DataError: naming the place and the field that is missing or not a positive number.
    """
    runs = []
    for path in paths:
        for where, record in _records(path):
            values = []
            for key in ("parameters", "tokens", loss):
                value = record.get(key)
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                    raise DataError(
                        f"{where}: {key} is {value!r}, not a positive number",
                        "Each run needs parameters, tokens and a loss; --loss names the field of the loss",
                    )
                values.append(float(value))
            runs.append(Run(*values))
    return runs


def fit_scaling_law(runs: Sequence[Run], resamples: int = 200, seed: int = 0) -> ScalingFit:
    """Fit the law to a ladder, and again to `resamples` of it drawn with replacement.

    Raises:
        DataError: too few runs, or they do not vary enough in parameters and tokens to tell the two apart.
        TrainingError: no start led to a law.
    """
    _require_ladder(runs)
    log_n, log_d, log_loss = (
        torch.tensor([getattr(r, name) for r in runs], dtype=torch.float64).log()
        for name in ("parameters", "tokens", "loss")
    )
    centers = log_n.mean(), log_d.mean()
    features = log_n - centers[0], log_d - centers[1], log_loss
    ones = torch.ones(len(_STARTS), len(runs), dtype=torch.float64)
    found, objective = _minimize(_starts(min(r.loss for r in runs)), ones, *features)
    if not torch.isfinite(objective).any():
        raise TrainingError("no law fits these runs", "Look for runs that failed or were measured otherwise")
    best = found[torch.where(torch.isfinite(objective), objective, torch.inf).argmin()]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(runs), (resamples, len(runs)), generator=generator)
    weights = torch.zeros(resamples, len(runs), dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(weights))
    varied = (weights > 0).sum(1) >= FEWEST_RUNS - 1  # fewer different runs than constants determine nothing
    weights = weights[varied]
    others, _ = _minimize(best.expand(len(weights), -1).clone(), weights, *features)
    return ScalingFit(_law(best, *centers), tuple(_law(row, *centers) for row in others), tuple(runs))


def hold_out_largest(runs: Sequence[Run], count: int) -> tuple[list[Run], list[Run]]:
    """The ladder without its `count` runs of most compute, and those."""
    ordered = sorted(runs, key=lambda run: run.flops)
    return ordered[: len(ordered) - count], ordered[len(ordered) - count :]


def _require_ladder(runs: Sequence[Run]) -> None:
    sizes, lengths = {r.parameters for r in runs}, {r.tokens for r in runs}
    if len(runs) < FEWEST_RUNS or len(sizes) < 3 or len(lengths) < 3:
        raise DataError(
            f"{len(runs)} runs with {len(sizes)} sizes and {len(lengths)} numbers of tokens do not determine a law",
            f"Bring at least {FEWEST_RUNS} runs with three sizes and three numbers of tokens",
        )
    if len({(r.tokens / r.parameters) for r in runs}) < 2:
        raise DataError(
            "every run has the same number of tokens per parameter, so their effects cannot be told apart",
            "Add runs with more or fewer tokens at some sizes",
        )


def _starts(least: float) -> Tensor:
    """[starts, 5]: log A and log B at the ladder's center, log E, α, β."""
    rows = []
    for alpha, beta, floor, share in _STARTS:
        above = least * (1 - floor)
        rows.append((math.log(above * share), math.log(above * (1 - share)), math.log(least * floor), alpha, beta))
    return torch.tensor(rows, dtype=torch.float64)


def _minimize(
    theta: Tensor, weights: Tensor, log_n: Tensor, log_d: Tensor, log_loss: Tensor, iterations: int = 200
) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt on the weighted Huber loss of log L, all rows at once.

    Args:
        theta: [rows, 5] where to begin.
        weights: [rows, runs] how often each run counts.
        log_n: [runs] centered.
        log_d: [runs] centered.
        log_loss: [runs].
        iterations: steps tried.

    Returns:
        [rows, 5] and the objective [rows].
    """

    def residuals(theta: Tensor) -> tuple[Tensor, Tensor]:
        """[rows, runs], and the share of each of the three terms in the prediction [rows, runs, 3]."""
        a, b, e, alpha, beta = theta.unsqueeze(-1).unbind(1)
        terms = torch.stack([a - alpha * log_n, b - beta * log_d, e.expand(-1, len(log_n))], -1)
        total = torch.logsumexp(terms, -1)
        return total - log_loss, (terms - total[..., None]).exp()

    def objective(residual: Tensor) -> Tensor:
        size = residual.abs()
        huber = torch.where(size <= HUBER_DELTA, size**2 / 2, HUBER_DELTA * (size - HUBER_DELTA / 2))
        return (weights * huber).sum(1)

    damping = torch.full((len(theta), 1, 1), 1e-2, dtype=theta.dtype)
    residual, shares = residuals(theta)
    value = objective(residual)
    for _ in range(iterations):
        of_n, of_d, of_e = shares.unbind(-1)
        jacobian = torch.stack([of_n, of_d, of_e, -of_n * log_n, -of_d * log_d], -1)  # [rows, runs, 5]
        # A linear residual is a quadratic one with a smaller weight.
        weighted = jacobian * (weights * (HUBER_DELTA / residual.abs().clamp(min=HUBER_DELTA)))[..., None]
        hessian = weighted.transpose(1, 2) @ jacobian
        gradient = weighted.transpose(1, 2) @ residual[..., None]
        diagonal = torch.diag_embed(hessian.diagonal(dim1=1, dim2=2) + 1e-12)
        move, failed = torch.linalg.solve_ex(hessian + damping * diagonal, gradient)
        trial = theta - move.squeeze(-1)
        trial[:, 3:].clamp_(_LEAST_EXPONENT, _LARGEST_EXPONENT)
        trial_residual, trial_shares = residuals(trial)
        trial_value = objective(trial_residual)
        better = (trial_value < value) & (failed == 0)  # comparisons with NaN are false
        theta = torch.where(better[:, None], trial, theta)
        residual = torch.where(better[:, None], trial_residual, residual)
        shares = torch.where(better[:, None, None], trial_shares, shares)
        value = torch.where(better, trial_value, value)
        damping = torch.where(better[:, None, None], damping / 3, damping * 4).clamp(1e-10, 1e10)
    return theta, value


def _law(theta: Tensor, center_n: Tensor, center_d: Tensor) -> ScalingLaw:
    a, b, e, alpha, beta = theta.tolist()
    return ScalingLaw(
        math.exp(e), math.exp(a + alpha * float(center_n)), math.exp(b + beta * float(center_d)), alpha, beta
    )


def _interval(value: float, samples: Sequence[float]) -> Interval:
    """Percentiles of the bootstrap."""
    if not samples:
        return Interval(value, math.nan, math.nan)
    edges = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = torch.quantile(torch.tensor(samples, dtype=torch.float64), edges).tolist()
    return Interval(value, low, high)


def _records(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Each run with its place for errors."""
    file = path / "lineage.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}", "Give JSONL files or model folders") from None
    try:
        if path.is_dir():
            return [(str(file), json.loads(text)["metrics"])]
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                rows.append((f"{path}:{number}", json.loads(line)))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} does not hold runs: {error}", "Give one JSON object a line") from None
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where} is not a JSON object", "Give one JSON object a line")
    return rows
