"""Scaling laws: planted constants come back, with honest intervals; bad ladders are refused."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from lmworks.cli.main import cli
from lmworks.core.errors import DataError
from lmworks.train.scaling_laws import (
    HUBER_DELTA,
    Run,
    ScalingLaw,
    fit_scaling_law,
    hold_out_largest,
    read_ladder,
)

CHINCHILLA = ScalingLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
SMALL = ScalingLaw(E=0.9, A=30.0, B=900.0, alpha=0.22, beta=0.45)
SIZES = (3e6, 1e7, 3e7, 1e8, 3e8)
RATIOS = (2, 8, 20, 60, 200)


def ladder(law: ScalingLaw, noise: float = 0.0, seed: int = 0) -> list[Run]:
    chance = random.Random(seed)
    return [Run(n, n * r, law.loss(n, n * r) * math.exp(chance.gauss(0, noise))) for n in SIZES for r in RATIOS]


@pytest.mark.parametrize("law", [CHINCHILLA, SMALL], ids=["chinchilla", "small"])
def test_planted_constants_are_recovered(law: ScalingLaw):
    found = fit_scaling_law(ladder(law), resamples=20).law
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=2e-3), name


def test_intervals_hold_the_truth_under_noise():
    held, total = 0, 0
    for seed in range(6):
        fit = fit_scaling_law(ladder(CHINCHILLA, noise=0.003, seed=seed), resamples=100, seed=seed)
        for name, interval in fit.constants().items():
            held += interval.low <= getattr(CHINCHILLA, name) <= interval.high
            total += 1
        assert fit.law.alpha == pytest.approx(0.34, abs=0.06)
        assert fit.law.beta == pytest.approx(0.28, abs=0.06)
    assert held / total > 0.7


def test_a_larger_run_is_predicted():
    kept, held = hold_out_largest(ladder(CHINCHILLA, noise=0.002), 3)
    fit = fit_scaling_law(kept, resamples=100)
    for run in held:
        predicted = fit.predict(run.parameters, run.tokens)
        assert predicted.value == pytest.approx(run.loss, rel=0.01)
        assert predicted.low <= predicted.value <= predicted.high


def test_one_bad_run_does_not_bend_the_law():
    runs = ladder(CHINCHILLA)
    runs[7] = Run(runs[7].parameters, runs[7].tokens, runs[7].loss * 1.5)
    assert fit_scaling_law(runs, resamples=20).law.alpha == pytest.approx(0.34, abs=0.01)


def test_the_minimum_is_as_deep_as_scipys():
    from scipy.optimize import minimize

    runs = ladder(CHINCHILLA, noise=0.01, seed=5)
    n, d, y = (np.log([getattr(r, name) for r in runs]) for name in ("parameters", "tokens", "loss"))

    def objective(theta: np.ndarray) -> float:
        a, b, e, alpha, beta = theta
        residual = np.abs(np.logaddexp(np.logaddexp(a - alpha * n, b - beta * d), e) - y)
        huber = np.where(residual <= HUBER_DELTA, residual**2 / 2, HUBER_DELTA * (residual - HUBER_DELTA / 2))
        return float(huber.sum())

    starts = [
        (a, b, e, p, q) for a in (3, 6) for b in (3, 6) for e in (0.0, 0.5) for p in (0.2, 0.4) for q in (0.2, 0.4)
    ]
    theirs = min(minimize(objective, start, method="L-BFGS-B").fun for start in starts)
    law = fit_scaling_law(runs, resamples=20).law
    ours = objective(np.array([math.log(law.A), math.log(law.B), math.log(law.E), law.alpha, law.beta]))
    assert ours <= theirs * 1.001


def test_the_optimum_is_the_least_loss_on_the_budget():
    flops = 1e20
    best = CHINCHILLA.optimum(flops)
    assert best.flops == pytest.approx(flops)
    sizes = np.geomspace(best.parameters / 10, best.parameters * 10, 2001)
    losses = [CHINCHILLA.loss(n, flops / 6 / n) for n in sizes]
    assert sizes[int(np.argmin(losses))] == pytest.approx(best.parameters, rel=0.01)
    assert best.loss == pytest.approx(min(losses), rel=1e-6)


def test_the_same_seed_gives_the_same_intervals():
    runs = ladder(CHINCHILLA, noise=0.01)
    assert fit_scaling_law(runs, 30, seed=1).constants() == fit_scaling_law(runs, 30, seed=1).constants()


def test_ladders_that_determine_nothing_are_refused():
    with pytest.raises(DataError, match="5 runs with 5 sizes"):
        fit_scaling_law([Run(n, 20 * n + 1, 3.0) for n in SIZES])
    with pytest.raises(DataError, match="1 sizes"):
        fit_scaling_law([Run(1e6, 1e7 * i, 3.0 / i) for i in range(1, 9)])
    with pytest.raises(DataError, match="same number of tokens per parameter"):
        fit_scaling_law([Run(float(n), 20.0 * n, 3.0) for n in (1, 2, 4, 8, 16, 32)])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"parameters": 1, "tokens": 2}', r"runs.jsonl:2: loss is None"),
        ('{"parameters": -1, "tokens": 2, "loss": 1}', "parameters is -1"),
        ('{"parameters": 1, "tokens": 2, "loss": NaN}', "loss is nan"),
        ('{"parameters": true, "tokens": 2, "loss": 1}', "parameters is True"),
        ("[1]", "runs.jsonl:2 is not a JSON object"),
        ("{", "does not hold runs"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str):
    file = tmp_path / "runs.jsonl"
    file.write_text('{"parameters": 1, "tokens": 2, "loss": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        read_ladder([file])


def test_model_folders_are_runs(tmp_path: Path):
    metrics = {"parameters": 5, "tokens": 7, "loss": 3.0, "validation_bits_per_byte": 2.0}
    (tmp_path / "lineage.json").write_text(json.dumps({"metrics": metrics}))
    assert read_ladder([tmp_path], "validation_bits_per_byte") == [Run(5, 7, 2.0)]
    with pytest.raises(DataError, match="cannot read"):
        read_ladder([tmp_path / "nothing"])


def test_the_command_predicts_fits_plans_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "runs.jsonl"
    file.write_text("".join(json.dumps(vars(run)) + "\n" for run in ladder(CHINCHILLA)))
    image = tmp_path / "law.png"
    arguments = ["scaling", "fit", str(file), "--flops", "1e20", "--plot", str(image), "--resamples", "20", "--json"]
    cli.main(arguments, standalone_mode=False)
    shown, last = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    report = json.loads(last)
    assert abs(report["held_out"][0]["relative_error"]) < 1e-3
    assert report["law"]["alpha"]["value"] == pytest.approx(0.34, rel=1e-3)
    assert report["optima"][0]["parameters"]["value"] == pytest.approx(CHINCHILLA.optimum(1e20).parameters, rel=1e-2)
    assert "1e+20 FLOPs" in shown
    assert image.read_bytes().startswith(b"\x89PNG")
