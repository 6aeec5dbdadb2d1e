"""float16: the scale moves as it should, scaling rounds nothing away, overflow is no fault, resume is exact."""

from pathlib import Path

import pytest
import torch
from train_case import same_weights, tiny_config, tiny_model, tiny_rows, tiny_trainer

from lmworks.objectives.causal_lm import causal_lm
from lmworks.train.events import read_events
from lmworks.train.faults import FaultInjector, infinite_gradient
from lmworks.train.loss_scaling import DynamicLossScale, LossScaleConfig
from lmworks.train.metrics import read_metrics
from lmworks.train.step import WorkingCopy, accumulate_gradients, finish_gradients
from lmworks.train.trainer import Trainer


def moves(config: LossScaleConfig, overflows: str) -> list[float]:
    scale = DynamicLossScale(config)
    values = []
    for mark in overflows:
        scale.update(overflow=mark == "x")
        values.append(scale.scale)
    return values


def test_the_scale_tolerates_halves_and_doubles():
    config = LossScaleConfig(initial_scale_power=3, loss_scale_window=2, hysteresis=2)
    assert moves(config, "xx..x.") == [8, 4, 4, 8, 8, 8]
    assert moves(config, "xxxxxx") == [8, 4, 2, 1, 1, 1]
    assert moves(LossScaleConfig(initial_scale_power=3, hysteresis=1, loss_scale_window=3), "x...") == [4, 4, 4, 8]


def test_a_saved_scale_moves_as_the_one_that_went_on():
    scale = DynamicLossScale(LossScaleConfig(initial_scale_power=4, loss_scale_window=3))
    for overflow in (True, False, False):
        scale.update(overflow=overflow)
    other = DynamicLossScale(scale.config)
    other.load_state_dict(scale.state_dict())
    for overflow in (False, True, True):
        scale.update(overflow=overflow)
        other.update(overflow=overflow)
        assert other.state_dict()["values"].equal(scale.state_dict()["values"])


def gradient(scale: float | None, dtype: torch.dtype) -> torch.Tensor:
    model = tiny_model()
    batches = [tiny_rows(tiny_config()).rows(start, 2) for start in (0, 2)]
    totals = accumulate_gradients(WorkingCopy(model, dtype), causal_lm, batches, "here", scale)
    finish_gradients(model, totals.n_targets, None)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_scaled_gradients_are_those_of_float32_and_without_a_scale_small_ones_vanish():
    exact = gradient(None, torch.float32)
    vanished = gradient(2.0**-14, torch.float16)
    assert (vanished - exact).norm() / exact.norm() > 0.1
    half = gradient(2.0**10, torch.float16)
    assert (half - exact).norm() / exact.norm() < 3e-3


def test_float16_trains_and_resumes_to_the_same_bits(tmp_path: Path):
    settings = {"precision": "float16", "loss_scale": {"loss_scale_window": 3}}
    straight = tiny_trainer(tmp_path / "straight", **settings)
    straight.fit()
    losses = [r["loss"] for r in read_metrics(tmp_path / "straight" / "metrics.jsonl")]
    scales = [r["loss_scale"] for r in read_metrics(tmp_path / "straight" / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    assert scales[-1] == 4 * scales[0]

    def crash(end):
        if end.step == 5:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path / "cut", callbacks=(crash,), **settings).fit()
    resumed = tiny_trainer(tmp_path / "cut", model=tiny_model(seed=3), **settings)
    resumed.fit()
    assert same_weights(straight.model, resumed.model)


def test_an_overflow_halves_the_scale_and_is_skipped_even_where_faults_halt(tmp_path: Path):
    config = tiny_config(precision="float16", loss_scale={"initial_scale_power": 4, "hysteresis": 1})
    injected = FaultInjector(tiny_rows(config), causal_lm, {9: infinite_gradient}, times=1)
    trainer = Trainer(tiny_model(), injected, injected, config, tmp_path)
    trainer.fit()
    (event,) = read_events(tmp_path / "events.jsonl")
    assert (event["step"], event["finding"], event["action"], event["culprits"]) == (3, "overflow", "skip", [])
    assert trainer.loss_scale is not None
    assert trainer.loss_scale.scale == 8
