"""Roles, the composite optimizer against torch's own, and its state."""

import pytest
import torch
from torch import nn

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.optim.optimizer import CompositeOptimizer, OptimizerConfig
from lmworks.optim.param_groups import parameter_roles
from lmworks.proofs.tiny import tiny_model


def set_gradients(model: nn.Module, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g)


def test_roles_of_an_untied_llama():
    roles = parameter_roles(tiny_model("llama"))
    assert roles["embed_tokens.weight"] == "embedding"
    assert roles["lm_head.weight"] == "head"
    assert roles["decoder.norm.weight"] == "vector"
    assert roles["decoder.layers.0.self_attn.q_proj.weight"] == "matrix"
    assert set(roles) == {name for name, _ in tiny_model("llama").named_parameters()}


def test_roles_of_a_tied_gpt2():
    roles = parameter_roles(tiny_model("gpt2"))
    assert "lm_head.weight" not in roles
    assert roles["decoder.embed_positions.weight"] == "embedding"
    assert roles["decoder.layers.0.mlp.up_proj.bias"] == "vector"


def test_frozen_parameters_have_no_role():
    model = tiny_model("llama")
    model.embed_tokens.weight.requires_grad_(False)
    assert "embed_tokens.weight" not in parameter_roles(model)


def test_updates_equal_those_of_torchs_optimizers():
    ours, theirs = tiny_model("llama"), tiny_model("llama")
    config = OptimizerConfig(kind="muon", lr=1e-2, matrix_lr=0.03, weight_decay=0.2)
    optimizer = CompositeOptimizer(ours, config)
    roles, named = parameter_roles(theirs), dict(theirs.named_parameters())

    def of(*wanted: str) -> list[nn.Parameter]:
        return [p for name, p in named.items() if roles[name] in wanted]

    muon = torch.optim.Muon(of("matrix"), lr=0.03, weight_decay=0.2)
    shared = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
    decayed = torch.optim.AdamW(of("head"), weight_decay=0.2, **shared)
    plain = torch.optim.AdamW(of("embedding", "vector"), weight_decay=0.0, **shared)
    for step in range(3):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step(0.5)
        for oracle in (muon, decayed, plain):
            for group in oracle.param_groups:
                group["lr"] = (0.03 if oracle is muon else 1e-2) * 0.5
            oracle.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_moves_to_another_optimizer_bit_for_bit(kind: str):
    config = OptimizerConfig(kind=kind)
    first, second = tiny_model("llama"), tiny_model("llama", seed=1)
    one, other = CompositeOptimizer(first, config), CompositeOptimizer(second, config)
    for step in range(4):
        if step == 2:
            second.load_state_dict(first.state_dict())
            other.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
        set_gradients(first, step)
        set_gradients(second, step)
        one.step(1.0)
        other.step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_an_empty_state_resets():
    model = tiny_model("llama")
    optimizer = CompositeOptimizer(model, OptimizerConfig())
    set_gradients(model, 0)
    optimizer.step(1.0)
    assert optimizer.state_dict()
    optimizer.load_state_dict({})
    assert not optimizer.state_dict()


def test_the_state_of_another_optimizer_is_refused():
    model = tiny_model("llama")
    adamw, muon = (CompositeOptimizer(model, OptimizerConfig(kind=kind)) for kind in ("adamw", "muon"))
    set_gradients(model, 0)
    adamw.step(1.0)
    with pytest.raises(CheckpointError, match="momentum_buffer"):
        muon.load_state_dict(adamw.state_dict())
    foreign = {k.replace("lm_head", "score"): v for k, v in adamw.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        adamw.load_state_dict(foreign)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_weight_that_no_gradient_has_reached_begins_anew(kind: str):
    models = [tiny_model("llama") for _ in range(2)]
    one, other = (CompositeOptimizer(model, OptimizerConfig(kind=kind)) for model in models)
    for step in range(4):
        if step == 2:
            models[1].load_state_dict(models[0].state_dict())
            other.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
        for model in models:
            set_gradients(model, step)
            if step < 3:
                model.lm_head.weight.grad = None
        one.step(1.0)
        other.step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_nothing_to_train_is_an_error():
    with pytest.raises(ConfigError, match="requires a gradient"):
        CompositeOptimizer(tiny_model("llama").requires_grad_(False), OptimizerConfig())
