"""What a run tells: norms by layer, bits per byte, energy, sinks, sentences, and a profile in words."""

import json
import math
from pathlib import Path

import pytest
import torch
from train_case import same_weights, tiny_config, tiny_model, tiny_rows, tiny_trainer

from lmworks.core.errors import MissingExtraError, TrainingError
from lmworks.core.telemetry import Event, subscribed
from lmworks.objectives.causal_lm import causal_lm
from lmworks.optim.averaging import WeightAverage
from lmworks.train.faults import FaultInjector, nan_loss
from lmworks.train.metrics import read_metrics
from lmworks.train.profiling import ADVICE, Operation, describe, kind_of
from lmworks.train.resources import EnergyMeter, peak_memory_bytes
from lmworks.train.signals import WINDOW, RunWatch
from lmworks.train.sinks import flat
from lmworks.train.trainer import Trainer


def test_norms_by_layer_are_those_of_the_tensors(tmp_path: Path):
    seen = {}
    trainer = tiny_trainer(tmp_path, norms_every=3, steps=3, max_grad_norm=None)

    def watch(end):
        seen[end.step] = {name: p.detach().clone() for name, p in end.model.named_parameters()}
        return {}

    trainer.callbacks = (watch,)
    trainer.fit()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert ["norms" in r for r in records] == [False, False, True]
    layers = records[2]["norms"]
    assert {"embed_tokens.weight", "decoder.layers.0", "decoder.layers.1"} <= set(layers)
    inside = [n for n in seen[3] if n.startswith("decoder.layers.1.")]
    update = math.sqrt(sum(float((seen[3][n] - seen[2][n]).square().sum()) for n in inside))
    assert layers["decoder.layers.1"]["update"] == pytest.approx(update, rel=1e-4)
    total = math.sqrt(sum(norms["gradient"] ** 2 for norms in layers.values()))
    assert total == pytest.approx(records[2]["grad_norm"], rel=1e-5)


def test_bits_per_byte_and_memory_are_recorded(tmp_path: Path):
    config = tiny_config(steps=2)
    trainer = Trainer(tiny_model(), causal_lm, tiny_rows(config), config, tmp_path, bytes_per_target=4.0)
    metrics = trainer.fit().metrics
    assert metrics["bits_per_byte"] == pytest.approx(metrics["loss"] / math.log(2) / 4)
    assert metrics["peak_memory_bytes"] > 10**7
    assert peak_memory_bytes(torch.device("cpu")) >= metrics["peak_memory_bytes"]


def test_energy_counters_are_summed_over_packages_and_may_wrap(tmp_path: Path):
    for name, value in (("intel-rapl:0", 900), ("intel-rapl:1", 50), ("intel-rapl:0:0", 7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000\n")
    meter = EnergyMeter(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100")  # 200 on, over the end of the counter
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("350")
    assert meter.joules() == pytest.approx(500e-6)
    assert meter.joules() == 0
    assert EnergyMeter(tmp_path / "none").joules() is None


def told(losses: list[float], validation: dict[int, float] | None = None) -> list[tuple[int, str]]:
    watch, said = RunWatch(), []
    for step, loss in enumerate(losses, 1):
        record = {"step": step, "loss": loss}
        if validation and step in validation:
            record["validation_bits_per_byte"] = validation[step]
        if (sentence := watch.tell(record)) is not None:
            said.append((step, sentence))
    return said


def test_divergence_is_said_once_and_only_when_it_is_there():
    falling = [4 - step / 100 for step in range(2 * WINDOW)]
    assert told(falling) == []
    ((step, sentence),) = told(falling + [4.5] * 2 * WINDOW)
    assert "moving away" in sentence
    assert 2 * WINDOW + WINDOW / 2 <= step <= 2 * WINDOW + WINDOW


def test_overfitting_is_said_when_validation_stays_worse_than_its_best():
    assert told([1.0] * 60, {10: 2.0, 20: 1.5, 30: 1.6, 40: 1.4, 50: 1.45}) == []
    ((step, sentence),) = told([1.0] * 60, {10: 2.0, 20: 1.5, 30: 1.6, 40: 1.7, 50: 1.8, 60: 1.9})
    assert step == 50
    assert "best at step 20 with 1.5000 and is 1.8000 now" in sentence


def test_the_console_shows_a_line_now_and_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny_trainer(tmp_path, tracking={"console_every": 4}).fit()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == ["step 4", "step 8"]
    assert "loss" in lines[0]


def test_nested_records_become_flat_numbers():
    assert flat({"a": 1, "b": {"c": {"d": 2.0}}, "e": "text"}) == {"a": 1, "b/c/d": 2.0}


def test_tensorboard_has_every_figure(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny_trainer(tmp_path / "run", norms_every=4, tracking={"tensorboard": str(tmp_path / "board")}).fit()
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    losses = [(e.step, e.value) for e in events.Scalars("loss")]
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert losses == [(r["step"], pytest.approx(r["loss"], rel=1e-6)) for r in records]
    assert [e.step for e in events.Scalars("norms/decoder.layers.0/update")] == [4, 8]


def test_tensorboard_forgets_what_a_rewind_takes_back(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(guard={"nonfinite": "rewind"}, tracking={"tensorboard": tmp_path / "board"})
    injected = FaultInjector(tiny_rows(config), causal_lm, {14: nan_loss})  # of step 4; step 3 was recorded already
    Trainer(tiny_model(), injected, injected, config, tmp_path / "run").fit()
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    losses = [(e.step, e.value) for e in events.Scalars("loss")]
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert losses == [(r["step"], pytest.approx(r["loss"], rel=1e-6)) for r in records]


@pytest.mark.slow
def test_mlflow_goes_on_with_the_same_run(tmp_path: Path):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    settings = {"tracking": {"mlflow": uri, "mlflow_experiment": "tests"}}

    def crash(end):
        if end.step == 5:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path / "run", callbacks=(crash,), **settings).fit()
    tiny_trainer(tmp_path / "run", **settings).fit()
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer/kind"] == "muon"
    assert {m.step for m in client.get_metric_history(run.info.run_id, "loss")} == set(range(1, 9))


@pytest.mark.parametrize("sink", ["tensorboard", "mlflow"])
def test_a_missing_tracker_is_named_before_the_first_step(tmp_path: Path, sink: str, monkeypatch: pytest.MonkeyPatch):
    def missing(module: str, extra: str) -> None:
        raise MissingExtraError(f"the package {module!r} is needed here and is not installed", f"lmworks[{extra}]")

    monkeypatch.setattr("lmworks.train.sinks.require", missing)
    with pytest.raises(MissingExtraError, match=sink):
        tiny_trainer(tmp_path, tracking={sink: str(tmp_path / "somewhere")}).fit()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_profile_has_a_trace_and_names_the_bottleneck(tmp_path: Path):
    config = tiny_config()
    rows = tiny_rows(config)
    Trainer(tiny_model(), causal_lm, rows, config, tmp_path / "run", profile=tmp_path / "profile").fit()
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"train/data", "train/forward", "train/backward", "train/optimizer", "aten::mm"} <= names
    report = (tmp_path / "profile" / "profile.md").read_text()
    assert "A step took" in report
    assert "- backward: " in report
    assert "| `aten::" in report


def test_a_run_that_ends_before_a_step_is_traced_says_why_it_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = tiny_config()
    injected = FaultInjector(tiny_rows(config), causal_lm, {8: nan_loss})
    with pytest.raises(TrainingError, match="the loss is nan at step 3"):
        Trainer(tiny_model(), injected, injected, config, tmp_path / "run", profile=tmp_path / "profile").fit()
    assert "no profile: it begins after 2 steps, and 2 were made" in capsys.readouterr().err
    assert not (tmp_path / "profile").exists()


def test_the_report_ranks_kinds_and_says_when_data_is_slow():
    operations = [
        Operation("aten::mm", 30, 0.6, 0.6),
        Operation("aten::copy_", 30, 0.3, 0.3),
        Operation("train/data", 3, 0.01, 0.4),
        Operation("train/forward", 3, 0.01, 0.5),
    ]
    report = describe(operations, seconds=1.0, steps=2)
    assert "A step took 500.0 ms; 67% of the work is matrix products." in report
    assert report.index("- matrix products: 67%") < report.index("- copies and casts: 33%")
    assert "- data: 40% of the time" in report
    assert "everything else (guard, records, callbacks): 10%" in report
    assert "the data is a bottleneck" in report


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::copy_", "copies and casts"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::_softmax", "softmax and loss"),
        ("aten::mul", "other"),
    ],
)
def test_operators_are_told_apart(name: str, kind: str):
    assert kind_of(name) == kind
    assert kind in ADVICE


def test_the_finished_model_and_measurements_are_the_average(tmp_path: Path):
    steps: dict[int, torch.Tensor] = {}
    reference = tiny_model()
    average = WeightAverage(reference, 0.9)
    trainer = tiny_trainer(tmp_path, ema_decay=0.9, eval_every=8, callbacks=())

    def watch(end):
        if end.step < 8:
            reference.load_state_dict(end.model.state_dict())
            average.update(end.step - 1)
        steps[end.step] = end.model.embed_tokens.weight.detach().clone()
        return {}

    trainer.callbacks = (watch,)
    trainer.fit()
    assert torch.equal(steps[8], trainer.model.embed_tokens.weight)
    plain = tiny_trainer(tmp_path / "plain")
    plain.fit()
    reference.load_state_dict(plain.model.state_dict())
    average.update(7)
    for name, tensor in average.state_dict().items():
        assert torch.equal(tensor, trainer.model.get_parameter(name))
    again = tiny_trainer(tmp_path, model=tiny_model(seed=4), ema_decay=0.9, eval_every=8)
    again.fit()
    assert same_weights(trainer.model, again.model)


def test_subscribers_hear_of_the_guard(tmp_path: Path):
    heard: list[Event] = []
    with subscribed(heard.append):
        trainer = tiny_trainer(tmp_path, guard={"window": 4, "threshold": 1e-3})
        trainer.fit()
    findings = [event for event in heard if event.name == "train.guard"]
    assert findings
    assert all(event.fields["finding"] == "spike" and event.fields["action"] == "record" for event in findings)
