"""Runs with 8-bit products: which maps take them, gradients and losses beside bfloat16's, resume, what is refused."""

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from distributed_case import train_forms, trainer, whole
from test_moe_training import moe_config
from train_case import same_weights, tiny_config, tiny_model, tiny_rows, tiny_trainer

from lmworks.core.errors import ConfigError
from lmworks.kernels import float8_linear as kernel
from lmworks.models.build import build_model
from lmworks.objectives.causal_lm import causal_lm
from lmworks.parallel.processes import run_processes
from lmworks.train import compile as compilation
from lmworks.train.compile import running_blocks
from lmworks.train.float8 import computing_in_float8, float8_linears
from lmworks.train.metrics import read_metrics
from lmworks.train.step import WorkingCopy

FORWARD, BACKWARD = 0.035, 0.055
"""Relative errors of one product of random operands: e4m3 twice, e4m3 and e5m2 (test_float8_linear.py)."""


def names_of(model) -> set[str]:
    chosen = {id(linear) for linear in float8_linears(model)}
    return {name for name, module in model.named_modules() if id(module) in chosen}


def test_all_linear_maps_of_layers_and_no_others():
    blocks = {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    assert {name.rpartition(".")[2] for name in names_of(tiny_model(hidden_size=32))} == blocks
    assert len(names_of(tiny_model(hidden_size=32))) == 2 * len(blocks)
    narrow = names_of(tiny_model(hidden_size=16))  # 8 key and value dimensions are too few
    assert {name.rpartition(".")[2] for name in narrow} == blocks - {"k_proj", "v_proj"}
    experts = names_of(build_model(moe_config(), seed=0))
    assert experts
    assert not any("experts" in name or "router" in name for name in experts)


def gradient(model, batch, *, float8: bool, compiled: bool = False) -> torch.Tensor:
    working = WorkingCopy(model, torch.bfloat16)
    with (
        computing_in_float8(working.model) if float8 else nullcontext(),
        running_blocks(working.model, "none", compiled=compiled),
    ):
        working.accumulate(causal_lm, [batch])
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return found


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_gradients_differ_by_what_8_bits_lose():
    """Eight products in a row forward and backward, whose errors add like random ones, at most."""
    model, batch = tiny_model(hidden_size=64), tiny_rows(tiny_config()).rows(0, 4)
    plain, rounded = (gradient(model, batch, float8=float8) for float8 in (False, True))
    assert 0.01 < gap(rounded, plain) < math.sqrt(8 * FORWARD**2 + 8 * BACKWARD**2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_layers_differ_by_less_than_8_bits_do(monkeypatch: pytest.MonkeyPatch):
    """Functions are traced as ever, but no code is made of the graphs, which takes minutes."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    model, batch = tiny_model(hidden_size=32), tiny_rows(tiny_config()).rows(0, 3)
    eager, compiled = (gradient(model, batch, float8=True, compiled=c) for c in (False, True))
    torch._dynamo.reset()
    assert gap(compiled, eager) < BACKWARD / 2  # other bits of bfloat16 are rounded to other 8 bits


def test_what_is_kept_for_the_backward_pass_is_8_bits_wide():
    model = tiny_model(hidden_size=64).bfloat16()
    kept = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t)
    with keep, computing_in_float8(model):
        causal_lm(model, tiny_rows(tiny_config()).rows(0, 4))
    assert kept.count(torch.float8_e4m3fn) == 2 * len(float8_linears(model))


def losses(folder: Path, **changes) -> torch.Tensor:
    model = tiny_model(hidden_size=64)
    tiny_trainer(folder, model=model, steps=40, optimizer={"lr": 3e-3}, **changes).fit()
    return torch.tensor([record["loss"] for record in read_metrics(folder / "metrics.jsonl")])


@pytest.mark.slow
def test_the_loss_follows_that_of_bfloat16(tmp_path: Path):
    plain, rounded = (losses(tmp_path / p, precision=p) for p in ("bfloat16", "float8"))
    assert plain[0] - plain[-5:].mean() > 0.3
    assert (plain - rounded).abs().max() < 0.03
    assert abs(float((plain - rounded).mean())) < 0.003
    assert not torch.equal(plain, rounded)


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_recomputing_changes_no_bit(tmp_path: Path, mode: str):
    plain = tiny_trainer(tmp_path / "plain", steps=3, precision="float8")
    plain.fit()
    other = tiny_trainer(tmp_path / mode, steps=3, precision="float8", activation_checkpointing=mode)
    other.fit()
    assert same_weights(plain.model, other.model)
    assert all("forward" not in vars(module) for module in other.working.model.modules())


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path):
    def stop(end):
        if end.step == 3:
            raise KeyboardInterrupt
        return {}

    straight = tiny_trainer(tmp_path / "straight", steps=5, precision="float8")
    straight.fit()
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path / "cut", steps=5, precision="float8", callbacks=(stop,)).fit()
    resumed = tiny_trainer(tmp_path / "cut", steps=5, precision="float8", model=tiny_model(seed=7))
    resumed.fit()
    assert same_weights(straight.model, resumed.model)


@pytest.mark.slow
def test_ranks_round_alike(tmp_path: Path):
    """Factors are powers of two, so what ranks see of a batch makes no difference; sums in another order may."""
    forms = {
        "data": {"parallel": {"data": 2}},
        "shard": {"parallel": {"shard": 2}},
        "expert": {"parallel": {"data": 2, "expert": 2}, "experts": True},
        "tensor": {"parallel": {"tensor": 2}},
    }
    forms = {name: form | {"precision": "float8"} for name, form in forms.items()}
    found, _ = run_processes(train_forms, 2, tmp_path / "many", forms)
    assert "finds one factor for each whole matrix, and tensor 2 divides them" in found.pop("tensor")[1]["error"]
    for name, (weights, metrics) in found.items():
        changes = {key: value for key, value in forms[name].items() if key != "parallel"}
        alone = trainer(tmp_path / "one" / name, **changes)
        loss = alone.fit().loss
        assert metrics["loss"] == pytest.approx(loss, rel=1e-6 if name != "expert" else 1e-4)
        theirs = torch.cat([weight.flatten() for weight in whole(alone).values()])
        assert gap(torch.cat([weight.flatten() for weight in weights.values()]), theirs) < 2e-3


def test_what_cannot_is_refused_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="multiples of 16, and the model has none"):
        tiny_trainer(tmp_path / "run", precision="float8", model=tiny_model(hidden_size=8))

    def missing(*_, **__):
        raise RuntimeError("no such product")

    monkeypatch.setattr(kernel.torch, "_scaled_mm", missing)
    kernel.require_float8.cache_clear()
    with pytest.raises(ConfigError, match="cpu does not: no such product"):
        tiny_trainer(tmp_path / "run", precision="float8")
    assert not (tmp_path / "run").exists()
