"""Compiled blocks give what uncompiled ones give, from one code for all of them, whatever the batches' sizes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from train_case import VOCAB, Documents, same_weights, tiny_config, tiny_model, tiny_rows, tiny_trainer

from lmworks.core.errors import ConfigError
from lmworks.data.tokens.packing import PackedRows
from lmworks.models.build import build_model
from lmworks.models.transformer import Transformer
from lmworks.objectives.causal_lm import causal_lm
from lmworks.train import compile as compilation
from lmworks.train.compile import compiling
from lmworks.train.config import TrainConfig
from lmworks.train.metrics import read_metrics
from lmworks.train.model_preset import ModelPreset

pytestmark = [  # what the compiler warns itself of, when it is imported and while it looks at functions
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Functions are traced as ever; but for the slow tests no code is made of the graphs."""
    torch._dynamo.reset()
    counters.clear()
    if "slow" not in request.keywords:
        monkeypatch.setattr(compilation, "BACKEND", "eager")
    yield
    torch._dynamo.reset()


def deep(preset: str = "llama", layers: int = 4, **changes: Any) -> Transformer:
    """A model of equal blocks."""
    chosen = ModelPreset(preset=preset, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2,
                         intermediate_size=48, **changes)  # fmt: skip
    config = chosen.to_model_config(vocab_size=VOCAB, sequence_length=64, bos_token_id=None, eos_token_ids=())
    return build_model(config, seed=3)


def gradients(model: nn.Module, rows: PackedRows, first: int, count: int) -> dict[str, torch.Tensor]:
    model.zero_grad()
    causal_lm(model, rows.rows(first, count)).loss_sum.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_equal_and_shared(preset: str = "llama", **changes: Any) -> None:
    model, plain, rows = deep(preset, **changes), deep(preset, **changes), PackedRows(Documents(), 32, 0)
    with compiling(model):
        for step, count in enumerate((2, 3, 1, 5)):  # other numbers of tokens and of documents
            expected, got = gradients(plain, rows, 7 * step, count), gradients(model, rows, 7 * step, count)
            assert expected.keys() == got.keys()
            for name, gradient in expected.items():
                torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
            if step == 0:
                compiled = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == compiled == 2, "before and after attention, for all four layers"
    assert not any("forward" in vars(module) for module in model.modules())


def test_gradients_are_those_of_the_uncompiled_model_and_layers_share_their_code() -> None:
    check_equal_and_shared("llama")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["llama", "qwen3", "gpt2"])
def test_machine_code_gives_the_same(preset: str) -> None:
    check_equal_and_shared(preset)


@pytest.mark.slow
def test_a_run_learns_as_the_uncompiled_one_and_recomputes(tmp_path: Path) -> None:
    plain = tiny_trainer(tmp_path / "plain").fit()
    for mode in ("none", "full"):
        result = tiny_trainer(tmp_path / mode, compile=True, activation_checkpointing=mode).fit()
        for made, expected in zip(*map(losses, (result.metrics_file, plain.metrics_file)), strict=True):
            assert made == pytest.approx(expected, rel=1e-4)


def losses(file: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(file)]


@pytest.mark.slow
def test_recomputing_compiled_blocks_gives_the_same_bits(tmp_path: Path) -> None:
    models = [tiny_model(0), tiny_model(0)]
    for model, mode in zip(models, ("none", "full"), strict=True):
        tiny_trainer(tmp_path / mode, model=model, compile=True, activation_checkpointing=mode).fit()
    assert same_weights(*models)


def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(tmp_path: Path) -> None:
    check_resumes(tmp_path, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_has_the_bits_with_machine_code_too(tmp_path: Path, precision: str) -> None:
    check_resumes(tmp_path, precision)


def check_resumes(tmp_path: Path, precision: str) -> None:
    whole, halved = tiny_model(0), tiny_model(0)
    tiny_trainer(tmp_path / "whole", model=whole, compile=True, precision=precision).fit()

    class Stop(Exception):
        pass

    def stop(end: Any) -> dict[str, float]:
        if end.step == 5:
            raise Stop
        return {}

    with pytest.raises(Stop):
        tiny_trainer(tmp_path / "halved", callbacks=(stop,), compile=True, precision=precision).fit()
    torch._dynamo.reset()  # as in a new process
    tiny_trainer(tmp_path / "halved", model=halved, compile=True, precision=precision).fit()
    assert same_weights(whole, halved)


@pytest.mark.slow
def test_batches_that_grow_and_contexts_that_are_cut_need_no_other_code(tmp_path: Path) -> None:
    schedule = [{"from_step": 2, "batch_tokens": 192}, {"from_step": 4, "sequence_length": 16}]
    steps = []

    def count(_: Any) -> dict[str, float]:
        steps.append(counters["stats"]["unique_graphs"])
        return {}

    tiny_trainer(tmp_path, callbacks=(count,), compile=True, size_schedule=schedule).fit()
    assert set(steps) == {2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_checkpointing": "selective"}, "selective chooses among operations"),
        ({"parallel": {"data": 2}}, "`compile` works in one process"),
    ],
)
def test_what_does_not_go_together_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(compile=True, **changes)


def test_a_model_without_layers_is_named() -> None:
    with pytest.raises(ConfigError, match="needs a module list called 'layers'"), compiling(nn.Linear(2, 2)):
        pass


def test_compiling_is_no_part_of_what_a_run_is() -> None:
    config = TrainConfig(steps=1)
    assert config.identity() == config.model_copy(update={"compile": True}).identity()
    assert len(tiny_rows(tiny_config()).rows(0, 1).input_ids) == 32
