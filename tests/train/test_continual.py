"""Going on from a model: replay and EWC each forget less than plain training; penalties against autograd."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train_case import Documents, tiny_config, tiny_model

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.core.lineage import write_artifact
from lmworks.data.tokens.packing import PackedRows
from lmworks.data.tokens.tokenize import TokenizeConfig, tokenize
from lmworks.objectives.causal_lm import causal_lm
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer
from lmworks.train.anchor import AnchoredObjective, diagonal_fisher
from lmworks.train.fisher import FisherConfig, fisher
from lmworks.train.float8 import computing_in_float8
from lmworks.train.moe import RoutedObjective
from lmworks.train.pretrain import PretrainConfig, pretrain
from lmworks.train.step import WorkingCopy
from lmworks.train.trainer import Trainer

OLD = ["the", "cat", "sat", "on", "a", "red", "mat", "and", "ran", "home"]
NEW = ["seven", "old", "ships", "sail", "east", "past", "dark", "islands"]


def write_domain(folder: Path, words: list[str]) -> None:
    """Texts in which each word decides the next."""
    with write_artifact(folder, "corpus", config={}) as writer:
        for split, documents in (("train", 40), ("validation", 6)):
            with (writer.folder / f"{split}.jsonl").open("w") as file:
                for i in range(documents):
                    text = " ".join(words[(i + j) % len(words)] for j in range(20))
                    file.write(json.dumps({"id": f"{i}", "text": text, "source": "t", "license": "CC0"}) + "\n")


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains as tokens, and a model that knows the old one."""
    folder = tmp_path_factory.mktemp("domains")
    write_domain(folder / "old", OLD)
    write_domain(folder / "new", NEW)
    train_tokenizer(TokenizerConfig(corpus=folder / "old", output=folder / "tokenizer", vocab_size=270))
    for name in ("old", "new"):
        corpus, tokens = folder / name, folder / f"{name}_tokens"
        tokenize(TokenizeConfig(corpus=corpus, tokenizer=folder / "tokenizer", output=tokens))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmworks.train.pretrain.plot_run", lambda *_: None)
        model = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        pretrain(settings(folder, folder / "base", "old_tokens", model=model))
    return folder


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmworks.train.pretrain.plot_run", lambda *_: None)


def settings(folder: Path, output: Path, tokens: Any, **changes: Any) -> PretrainConfig:
    values = {
        "tokens": folder / tokens if isinstance(tokens, str) else tokens,
        "tokenizer": folder / "tokenizer",
        "output": output,
        "train": {"steps": 60, "batch_tokens": 512, "sequence_length": 64, "precision": "float32",
                  "optimizer": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.0}, "schedule": {"kind": "constant"}},
    }  # fmt: skip
    return PretrainConfig.parse(values | changes)


def go_on(domains: Path, output: Path, tokens: Any = "new_tokens", **changes: Any) -> dict[str, float]:
    also = {"old": domains / "old_tokens"} if tokens == "new_tokens" else {}
    shorter = {"train": settings(domains, output, tokens).train.model_copy(update={"steps": 30}).to_dict()}
    manifest = pretrain(
        settings(domains, output, tokens, init_from=domains / "base", also_validate=also, **shorter, **changes)
    )
    return manifest.metrics


def test_replay_and_ewc_forget_less_than_plain_training(domains: Path, tmp_path: Path) -> None:
    plain = go_on(domains, tmp_path / "plain")
    assert plain["forgetting.old"] > 1
    assert plain["forgetting.tokens"] < -1, "the new domain is learned"
    weights = {"old": 0.25, "new": 0.75}
    mixture = {"sources": {n: {"tokens": domains / f"{n}_tokens", "weight": w} for n, w in weights.items()}}
    replay = go_on(domains, tmp_path / "replay", mixture)
    assert replay["share.old"] == pytest.approx(0.25, abs=1 / 240)
    assert replay["forgetting.old"] < 0.2 * plain["forgetting.old"]
    fisher(FisherConfig(model=domains / "base", tokens=domains / "old_tokens", output=tmp_path / "fisher", rows=12,
                        sequence_length=64))  # fmt: skip
    anchor = {"kind": "ewc", "strength": 3e3, "fisher": tmp_path / "fisher"}
    ewc = go_on(domains, tmp_path / "ewc", anchor=anchor)
    assert ewc["forgetting.old"] < 0.7 * plain["forgetting.old"]
    assert ewc["forgetting.tokens"] < -0.5, "and the new domain is learned all the same"
    with pytest.raises(CheckpointError, match="estimated on another model"):
        pretrain(settings(domains, tmp_path / "x", "new_tokens", init_from=tmp_path / "plain", anchor=anchor))


def test_the_penalty_and_its_gradient_are_the_formula() -> None:
    model = tiny_model(0)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    importance = {n: torch.rand(p.shape, generator=generator) for n, p in start.items()}
    for known in (None, importance):
        objective = AnchoredObjective(causal_lm, model, 0.7, known)
        assert float(objective.penalty().detach()) == 0
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.zero_grad()
        objective.penalty().backward()
        moved = {n: p.detach() for n, p in model.named_parameters()}
        weight = {n: torch.ones_like(p) if known is None else known[n] for n, p in start.items()}
        expected = 0.35 * sum((weight[n] * (moved[n] - start[n]) ** 2).sum() for n in start)
        torch.testing.assert_close(objective.penalty().detach(), expected)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, 0.7 * weight[name] * (moved[name] - start[name]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(start[name])


@pytest.mark.parametrize("float8", [False, True])
def test_in_a_bfloat16_copy_distances_and_their_gradient_keep_float32(float8: bool) -> None:
    """The weights move by less than a bfloat16 can tell; tokens pull as without the anchor."""
    batch = PackedRows(Documents(), 32, 0).rows(0, 2)
    gradients: list[dict[str, torch.Tensor]] = []
    for strength in (1e-30, 5.0):
        model = tiny_model(0)
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        generator = torch.Generator().manual_seed(1)
        importance = {n: torch.rand(p.shape, generator=generator) for n, p in start.items()}
        working = WorkingCopy(model, torch.bfloat16)
        anchored = AnchoredObjective(causal_lm, model, strength, importance)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1e-6
        with computing_in_float8(working.model) if float8 else nullcontext():
            sums = working.accumulate(anchored, [batch, batch])
        gradients.append({n: p.grad / sums.n_targets for n, p in model.named_parameters()})
    plain, held = gradients
    for name, parameter in model.named_parameters():
        pull = 5.0 * importance[name] * (parameter.detach() - start[name])
        torch.testing.assert_close(held[name] - plain[name], pull, rtol=0.02, atol=1e-7)


def test_a_bfloat16_run_is_held(tmp_path: Path) -> None:
    settings = {"precision": "bfloat16", "optimizer": {"kind": "sgd", "lr": 0.01}, "checkpoint_every": 8}
    moved = []
    for strength in (1e-6, 100.0):
        config, model = tiny_config(**settings), tiny_model(0)
        start = [p.detach().clone() for p in model.parameters()]
        objective = AnchoredObjective(causal_lm, model, strength)
        Trainer(model, objective, PackedRows(Documents(), 32, 0), config, tmp_path / str(strength)).fit()
        moved.append(
            sum(float((p.detach() - s).square().sum()) for p, s in zip(model.parameters(), start, strict=True))
        )
    assert 0 < moved[1] < 0.2 * moved[0]


def test_the_fisher_information_is_the_mean_squared_gradient() -> None:
    model = tiny_model(0)
    rows = PackedRows(Documents(), 32, 0)
    got = diagonal_fisher(model, causal_lm, lambda number: rows.rows(number, 1), 3)
    expected = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    targets = 0.0
    for number in range(3):
        model.zero_grad()
        loss = causal_lm(model, rows.rows(number, 1))
        loss.loss_sum.backward()
        targets += float(loss.n_targets)
        for name, parameter in model.named_parameters():
            expected[name] += parameter.grad**2
    assert model.training
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name] / targets)


def test_the_fisher_folder_holds_every_weight(domains: Path, tmp_path: Path) -> None:
    manifest = fisher(FisherConfig(model=domains / "base", tokens=domains / "old_tokens", output=tmp_path / "f", rows=2,
                                   sequence_length=64))  # fmt: skip
    held = load_file(tmp_path / "f" / "fisher.safetensors")
    assert {p.role for p in manifest.parents} == {"model", "tokens"}
    assert all((tensor >= 0).all() for tensor in held.values())
    assert manifest.metrics["mean"] > 0


def test_steps_are_told_through_the_anchor() -> None:
    routed = RoutedObjective(causal_lm, 0.0, 0.0)
    told = []
    routed.step_done = lambda **ended: told.append(ended) or {"moved": 1.0}
    model = tiny_model(0)
    assert AnchoredObjective(routed, model, 1.0).step_done(updated=True) == {"moved": 1.0}
    assert told == [{"updated": True}]
    assert AnchoredObjective(causal_lm, model, 1.0).step_done(updated=True) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchor": {"strength": 1}}, "`anchor` holds a run at the weights of `init_from`"),
        ({"init_from": "m", "anchor": {"kind": "ewc", "strength": 1}}, "exactly with the kind ewc"),
        ({"init_from": "m", "anchor": {"strength": -1}}, "anchor.strength = -1"),
        ({"init_from": "m", "model": {"hidden_size": 64}}, "leave `model` out"),
        ({"init_from": "m", "anchor": {"strength": 1}, "train": {"steps": 1, "precision": "float16"}}, "float16"),
        ({"objective": {"kind": "masked_lm"}, "also_validate": {"old": "t"}}, "`also_validate` measures bits per byte"),
    ],
)
def test_impossible_settings_are_named(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path, tmp_path / "m", "tokens", **changes)


def test_importance_of_another_model_is_named() -> None:
    model = tiny_model(0)
    wrong = {n: torch.ones(p.shape) for n, p in tiny_model(0, hidden_size=32).named_parameters()}
    with pytest.raises(CheckpointError, match=r"differ in .* parameters, among them"):
        AnchoredObjective(causal_lm, model, 1.0, wrong)
