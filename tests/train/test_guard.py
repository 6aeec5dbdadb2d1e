"""The step guard: what is found, what is done, what is recorded, and that a resumed run does the same."""

import math
import os
import signal
from pathlib import Path

import pytest
import torch
from train_case import same_weights, tiny_config, tiny_model, tiny_rows

from lmworks.core.errors import ConfigError, TrainingError
from lmworks.objectives.causal_lm import causal_lm
from lmworks.train.callbacks import StepEnd
from lmworks.train.events import read_events
from lmworks.train.faults import FaultInjector, infinite_gradient, nan_loss, spike
from lmworks.train.guard import Finding, GuardConfig, StepGuard, spike_limit
from lmworks.train.metrics import read_metrics
from lmworks.train.trainer import Trainer

WATCHFUL = {"window": 8, "threshold": 40.0}


def faulty(folder: Path, faults: dict, *, times: int | None = None, callbacks: tuple = (), **changes) -> Trainer:
    config = tiny_config(**{"steps": 16, **changes})
    injected = FaultInjector(tiny_rows(config), causal_lm, faults, times=times)
    return Trainer(tiny_model(config.seed), injected, injected, config, folder, callbacks=callbacks)


def judged(guard: StepGuard, losses: list[float], norm: float = 1.0) -> list[str]:
    return [guard.judge(step, loss, norm).action for step, loss in enumerate(losses)]


def test_the_limit_is_the_median_and_deviations_that_outliers_do_not_move():
    past = [1.0, 2.0, 3.0, 4.0, 100.0]
    assert spike_limit(past, 2.0) == pytest.approx(3 + 2 * 1.4826 * 1)
    assert spike_limit([5.0] * 4, 6.0) == pytest.approx(5 + 6 * 0.05)  # never narrower than a hundredth


def test_nothing_is_a_spike_before_half_the_window():
    config = GuardConfig(window=8, spike="skip")
    assert judged(StepGuard(config), [1, 1, 1, 9, 1]) == ["update"] * 5
    assert judged(StepGuard(config), [1, 1, 1, 1, 9, 1, 1.01]) == ["update"] * 4 + ["skip"] + ["update"] * 2


def test_a_gradient_norm_is_a_spike_too_and_falling_never_is():
    guard = StepGuard(GuardConfig(window=4, spike="skip"))
    assert judged(guard, [3, 2.5, 2, 0.1]) == ["update"] * 4
    verdict = guard.judge(4, 0.1, 50.0)
    assert (verdict.finding, verdict.action) == (Finding.SPIKE, "skip")
    assert "gradient norm is 50" in verdict.reason


@pytest.mark.parametrize(
    ("loss", "norm", "can_rescale", "finding"),
    [
        (math.nan, 1.0, True, Finding.NONFINITE),
        (math.inf, 1.0, False, Finding.NONFINITE),
        (1.0, math.inf, True, Finding.OVERFLOW),
        (1.0, math.nan, False, Finding.NONFINITE),
        (1.0, 1.0, True, Finding.FINE),
    ],
)
def test_what_is_not_finite(loss: float, norm: float, can_rescale: bool, finding: Finding):
    guard = StepGuard(GuardConfig(nonfinite="skip"))
    verdict = guard.judge(0, loss, norm, can_rescale=can_rescale)
    assert verdict.finding is finding
    assert verdict.updates == (finding is Finding.FINE)


def test_skipping_without_getting_on_halts():
    guard = StepGuard(GuardConfig(nonfinite="skip", max_in_a_row=3))
    assert judged(guard, [math.nan] * 4) == ["skip"] * 3 + ["halt"]
    guard = StepGuard(GuardConfig(nonfinite="skip", max_in_a_row=3))
    assert judged(guard, [math.nan, math.nan, math.nan, 1.0] * 3) == (["skip"] * 3 + ["update"]) * 3


def test_a_saved_guard_decides_as_the_one_that_went_on():
    losses = [2.0, 2.1, 1.9, 2.0, 2.2, math.nan, 8.0, 2.0, 9.0, 2.05]
    config = GuardConfig(nonfinite="skip", spike="skip", window=6)
    straight = StepGuard(config)
    judged(straight, losses[:5])
    resumed = StepGuard(config)
    resumed.load_state_dict({k: v.clone() for k, v in straight.state_dict().items()})
    ours, theirs = ([g.judge(5 + i, x, 1.0).action for i, x in enumerate(losses[5:])] for g in (straight, resumed))
    assert ours == theirs == ["skip", "skip", "update", "skip", "update"]
    assert resumed.events == straight.events == 3


def test_a_skipped_step_leaves_weights_and_optimizer_and_names_the_row(tmp_path: Path):
    seen: dict[int, torch.Tensor] = {}

    def keep(end: StepEnd) -> dict[str, float]:
        seen[end.step] = end.model.embed_tokens.weight.detach().clone()
        return {}

    trainer = faulty(tmp_path, {22: nan_loss}, guard={"nonfinite": "skip"}, callbacks=(keep,))
    trainer.fit()
    assert torch.equal(seen[5], seen[6])
    assert not torch.equal(seen[6], seen[7])
    (event,) = read_events(tmp_path / "events.jsonl")
    assert (event["step"], event["finding"], event["action"]) == (6, "nonfinite", "skip")
    assert (event["first_row"], event["last_row"], event["culprits"]) == (20, 23, [22])
    assert event["loss"] == "nan"
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 17))
    assert "loss" not in records[5]
    assert records[5]["skipped"] == "the loss is nan"


def test_a_halt_names_the_bad_row_and_one_bad_gradient_has_none(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"the loss is nan at step 6 \(rows 20 to 23\); bad rows: 22"):
        faulty(tmp_path / "loss", {22: nan_loss}).fit()
    with pytest.raises(TrainingError, match=r"the gradient norm is (nan|inf) at step 6 \(rows 20 to 23\)\. "):
        faulty(tmp_path / "gradient", {22: infinite_gradient}).fit()


def test_a_fault_that_is_gone_when_read_again_is_nobodys_row(tmp_path: Path):
    faulty(tmp_path, {22: nan_loss}, times=1, guard={"nonfinite": "skip"}).fit()
    (event,) = read_events(tmp_path / "events.jsonl")
    assert event["culprits"] == []


def test_a_spike_is_recorded_and_the_update_made_unless_told_otherwise(tmp_path: Path):
    trainer = faulty(tmp_path, {42: spike(5.0)}, guard=WATCHFUL)
    trainer.fit()
    events = read_events(tmp_path / "events.jsonl")
    assert [(e["step"], e["finding"], e["action"], e["culprits"]) for e in events] == [(11, "spike", "record", [42])]
    assert read_metrics(tmp_path / "metrics.jsonl")[10]["grad_norm"] > 0


def test_rewinding_returns_to_the_checkpoint_and_passes_over_the_rows(tmp_path: Path):
    settings = {"checkpoint_every": 4, "guard": {"nonfinite": "rewind"}}
    trainer = faulty(tmp_path / "faulty", {22: nan_loss}, **settings)
    trainer.fit()
    (event,) = read_events(tmp_path / "faulty" / "events.jsonl")
    assert (event["step"], event["action"], event["culprits"]) == (6, "rewind", [22])
    assert [r["step"] for r in read_metrics(tmp_path / "faulty" / "metrics.jsonl")] == list(range(1, 17))

    class Without:
        """Rows 16 to 23, those of steps 5 and 6, are not there."""

        def rows(self, start: int, count: int):
            return tiny_rows(tiny_config()).rows(start if start < 16 else start + 8, count)

    config = tiny_config(steps=16, **settings)
    clean = Trainer(tiny_model(), causal_lm, Without(), config, tmp_path / "clean")
    clean.fit()
    assert same_weights(trainer.model, clean.model)


def test_rewinding_before_the_first_checkpoint_begins_anew(tmp_path: Path):
    trainer = faulty(tmp_path, {5: nan_loss}, checkpoint_every=10, guard={"nonfinite": "rewind"})
    trainer.fit()
    assert trainer.guard.rows_passed == 8


@pytest.mark.parametrize("action", ["skip", "rewind"])
@pytest.mark.parametrize("stop_after", [6, 9])
def test_a_resumed_run_decides_the_same(tmp_path: Path, action: str, stop_after: int):
    faults = {22: nan_loss, 44: spike(5.0)}
    settings = {"checkpoint_every": 3, "guard": {"nonfinite": action, "spike": action, **WATCHFUL}}
    straight = faulty(tmp_path / "straight", faults, **settings)
    straight.fit()

    def stop(end: StepEnd) -> dict[str, float]:
        if end.step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(SystemExit):
        faulty(tmp_path / "cut", faults, callbacks=(stop,), **settings).fit()
    resumed = faulty(tmp_path / "cut", faults, **settings)
    resumed.fit()
    assert same_weights(straight.model, resumed.model)
    events = [read_events(tmp_path / run / "events.jsonl") for run in ("straight", "cut")]
    assert events[0] == events[1]
    assert len(events[0]) == 2


def test_events_after_the_checkpoint_are_forgotten_and_met_again(tmp_path: Path):
    settings = {"checkpoint_every": 4, "guard": {"nonfinite": "skip"}}

    def crash(end: StepEnd) -> dict[str, float]:
        if end.step == 7:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        faulty(tmp_path, {22: nan_loss}, callbacks=(crash,), **settings).fit()
    assert len(read_events(tmp_path / "events.jsonl")) == 1
    faulty(tmp_path, {22: nan_loss}, **settings).fit()
    assert [e["step"] for e in read_events(tmp_path / "events.jsonl")] == [6]


def test_impossible_guards_are_refused():
    with pytest.raises(ConfigError, match=r"guard\.nonfinite"):
        tiny_config(guard={"nonfinite": "record"})
    with pytest.raises(ConfigError, match=r"guard\.window"):
        tiny_config(guard={"window": 1})
