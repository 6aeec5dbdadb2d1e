"""The loop: bit-exact resume, accumulation, guards, records, and settings that cannot be."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from train_case import same_weights, tiny_config, tiny_model, tiny_rows, tiny_trainer

from lmworks.core.errors import ConfigError, TrainingError
from lmworks.nn.batch import Batch
from lmworks.objectives.causal_lm import causal_lm
from lmworks.objectives.loss import Loss
from lmworks.optim.clipping import ClippingConfig
from lmworks.optim.optimizer import OptimizerConfig
from lmworks.train.callbacks import StepEnd, every
from lmworks.train.metrics import read_metrics
from lmworks.train.step import WorkingCopy, accumulate_gradients, finish_gradients
from lmworks.train.trainer import Trainer


def stop_at(step: int, number: signal.Signals = signal.SIGTERM):
    def callback(end: StepEnd) -> dict[str, float]:
        if end.step == step:
            os.kill(os.getpid(), number)
        return {}

    return callback


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_stopping_and_resuming_gives_the_same_bits(tmp_path: Path, precision: str, kind: str):
    settings = {"precision": precision, "optimizer": {"kind": kind}, "checkpoint_every": 100}
    straight = tiny_trainer(tmp_path / "straight", **settings)
    straight.fit()
    with pytest.raises(SystemExit) as stopped:
        tiny_trainer(tmp_path / "cut", callbacks=(stop_at(4),), **settings).fit()
    assert stopped.value.code == 143
    resumed = tiny_trainer(tmp_path / "cut", model=tiny_model(seed=9), **settings)
    resumed.fit()
    assert same_weights(straight.model, resumed.model)
    ours, theirs = (straight.optimizer.state_dict(), resumed.optimizer.state_dict())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    lines = [
        [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("straight", "cut")
    ]
    assert lines[0] == lines[1]
    assert [step for step, _, _ in lines[0]] == list(range(1, 9))


def test_ctrl_c_stops_with_130_and_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = signal.getsignal(signal.SIGINT)  # ignored, where a shell started this in the background
    with pytest.raises(SystemExit) as stopped:
        tiny_trainer(tmp_path, callbacks=(stop_at(3, signal.SIGINT),)).fit()
    assert stopped.value.code == 130
    assert (tmp_path / "step-00000003" / "lineage.json").is_file()
    assert "run the same again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_is_not_trained_again(tmp_path: Path):
    first = tiny_trainer(tmp_path)
    before = first.fit()
    again = tiny_trainer(tmp_path, model=tiny_model(seed=5), callbacks=(stop_at(8),))
    assert again.fit() == before
    assert same_weights(first.model, again.model)


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("rows_per_micro_batch", [1, 2, 3, 4, 6, 12])
def test_every_split_of_a_batch_gives_the_same_gradient(rows_per_micro_batch: int):
    weights = torch.ones(12 * 32)
    weights[:70] = 0  # targets are spread unevenly over the micro-batches
    weights[200:] *= 0.5

    def micro_batch(start: int, count: int) -> Batch:
        batch = tiny_rows(tiny_config()).rows(start, count)
        return replace(batch, loss_weights=batch.loss_weights * weights[32 * start : 32 * (start + count)])

    reference, model = tiny_model(), tiny_model()
    loss = causal_lm(reference, micro_batch(0, 12))
    (loss.loss_sum / loss.n_targets).backward()
    expected = gradient(reference)
    split = [micro_batch(start, rows_per_micro_batch) for start in range(0, 12, rows_per_micro_batch)]
    # A micro-batch without any target adds nothing, and must not break the sum.
    totals = accumulate_gradients(WorkingCopy(model, torch.float32), causal_lm, split, "here")
    finish_gradients(model, totals.n_targets, None)
    assert (gradient(model) - expected).norm() / expected.norm() <= 1e-6
    assert totals.loss == pytest.approx((loss.loss_sum.detach() / loss.n_targets).item(), rel=1e-6)


def test_bfloat16_updates_float32_weights_with_nearly_the_float32_gradient():
    batches = [tiny_rows(tiny_config()).rows(start, 2) for start in (0, 2)]
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model()
        working = WorkingCopy(model, dtype)
        totals = accumulate_gradients(working, causal_lm, batches, "here")
        finish_gradients(model, totals.n_targets, None)
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
        gradients.append(gradient(model))
    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 2e-2


def test_frozen_weights_are_shared_and_stay_as_they_are(tmp_path: Path):
    model = tiny_model()
    model.decoder.requires_grad_(False).to(torch.bfloat16)
    frozen = [p.clone() for p in model.decoder.parameters()]
    trainer = tiny_trainer(tmp_path, model=model, precision="bfloat16", steps=2)
    assert trainer.working.model.decoder.norm.weight is model.decoder.norm.weight
    trainer.fit()
    assert all(torch.equal(p, before) for p, before in zip(model.decoder.parameters(), frozen, strict=True))
    assert not torch.equal(model.embed_tokens.weight, tiny_model().embed_tokens.weight)
    resumed = tiny_trainer(tmp_path, model=tiny_model(), precision="bfloat16", steps=2, keep_last=1)
    with pytest.raises(TrainingError, match="parameters was"):
        resumed.fit()


def test_weights_that_are_not_float32_are_not_trained(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"embed_tokens\.weight' is torch\.bfloat16"):
        tiny_trainer(tmp_path, model=tiny_model().to(torch.bfloat16))


@pytest.mark.parametrize(
    ("batch_tokens", "length", "rows"), [(16384, 512, 8), (5 * 512, 512, 5), (11 * 512, 512, 1), (8192, 8192, 1)]
)
def test_the_default_micro_batch_divides_the_update(batch_tokens: int, length: int, rows: int):
    config = tiny_config(batch_tokens=batch_tokens, sequence_length=length, micro_batch_tokens=None)
    assert config.rows_per_micro_batch == rows


def test_clipping_bounds_the_global_norm():
    model = tiny_model()
    batch = tiny_rows(tiny_config()).rows(0, 2)
    totals = accumulate_gradients(WorkingCopy(model, torch.float32), causal_lm, [batch], "here")
    norm = float(finish_gradients(model, totals.n_targets, ClippingConfig(limit=0.01)).total)
    assert norm > 0.01
    assert gradient(model).norm().item() == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_training_learns(tmp_path: Path, kind: str):
    settings = {"optimizer": {"kind": kind, "lr": 0.02}, "precision": "bfloat16", "checkpoint_every": 100}
    result = tiny_trainer(tmp_path, steps=40, batch_tokens=256, **settings).fit()
    first = read_metrics(result.metrics_file)[0]["loss"]
    assert first == pytest.approx(math.log(61), abs=0.1)
    assert result.loss < first - 0.3


def test_a_loss_that_is_not_finite_halts_before_the_update(tmp_path: Path):
    calls = []

    def breaks(model: torch.nn.Module, batch: Batch) -> Loss:
        calls.append(1)
        loss = causal_lm(model, batch)
        return replace(loss, loss_sum=loss.loss_sum * float("nan")) if len(calls) == 8 else loss

    config = tiny_config()
    trainer = Trainer(tiny_model(), breaks, tiny_rows(config), config, tmp_path)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 4 \(rows 12 to 15\)"):
        trainer.fit()
    resumed = tiny_trainer(tmp_path)
    assert resumed.fit().step == 8
    straight = tiny_trainer(tmp_path / "straight")
    straight.fit()
    assert same_weights(straight.model, resumed.model)


def test_a_gradient_that_is_not_finite_halts(tmp_path: Path):
    def breaks(model: torch.nn.Module, batch: Batch) -> Loss:
        loss = causal_lm(model, batch)
        loss.loss_sum.register_hook(lambda g: g * float("inf"))
        return loss

    config = tiny_config()
    model = tiny_model()
    with pytest.raises(TrainingError, match=r"gradient norm is (nan|inf) at step 1"):
        Trainer(model, breaks, tiny_rows(config), config, tmp_path).fit()
    assert same_weights(model, tiny_model())


def test_a_step_without_targets_is_an_error(tmp_path: Path):
    class Empty:
        def rows(self, start: int, count: int) -> Batch:
            batch = tiny_rows(tiny_config()).rows(start, count)
            return replace(batch, loss_weights=torch.zeros_like(batch.loss_weights))

    with pytest.raises(TrainingError, match="no target to learn"):
        Trainer(tiny_model(), causal_lm, Empty(), tiny_config(), tmp_path).fit()


def test_callbacks_join_the_record_and_see_the_updated_weights(tmp_path: Path):
    seen = []

    def watch(end: StepEnd) -> dict[str, float]:
        assert not torch.equal(end.model.embed_tokens.weight, tiny_model().embed_tokens.weight)
        seen.append(end.step)
        return {"figure": float(end.step)}

    result = tiny_trainer(tmp_path, callbacks=(every(3, watch), every(None, watch))).fit()
    assert seen == [3, 6, 8, 8]
    assert [r.get("figure") for r in read_metrics(result.metrics_file)] == [None, None, 3, None, None, 6, None, 8]
    assert json.loads(result.metrics_file.read_text().splitlines()[2])["tokens"] == 3 * 128


def test_utilization_is_reported_when_the_cost_of_a_token_is_known(tmp_path: Path):
    config = tiny_config(steps=2)
    trainer = Trainer(tiny_model(), causal_lm, tiny_rows(config), config, tmp_path, flops_per_token=1e4)
    assert 0 < trainer.fit().metrics["mfu"] < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 100}, "batch_tokens 100 is not a multiple of micro_batch_tokens 64"),
        ({"micro_batch_tokens": 16}, "micro_batch_tokens 16 is not a multiple of sequence_length 32"),
        ({"batch_tokens": 100, "micro_batch_tokens": None}, "batch_tokens 100 is not a multiple of sequence_length"),
        ({"steps": 0}, "steps = 0"),
        ({"schedule": {"warmup_steps": 9}}, "warmup_steps 9 exceed the run's 8 steps"),
        ({"learning_rate": 1.0}, "unknown field 'learning_rate'"),
        ({"optimizer": {"kind": "lyon"}}, "lyon"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        tiny_config(**changes)


def test_the_default_optimizer_is_muon_with_its_own_rate():
    assert OptimizerConfig().peak_matrix_lr == 0.02
    assert OptimizerConfig(kind="adamw", lr=1e-3).peak_matrix_lr == 1e-3
