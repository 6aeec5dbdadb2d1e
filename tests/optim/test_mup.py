"""The coordinate check: with scaled learning rates, training moves wide models as it moves narrow ones."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lmworks.core.errors import ConfigError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.slots import AttentionConfig, MLPConfig
from lmworks.nn.attention_context import PackedContext
from lmworks.optim.mup import coordinate_check, growth_with_width, learning_rate_multipliers, scale_initial_weights
from lmworks.optim.optimizer import CompositeOptimizer, OptimizerConfig

BASE = 32
WIDTHS = (32, 64, 128, 256)
TOKENS = torch.randint(0, 50, (33,), generator=torch.Generator().manual_seed(0))


def llama(width: int, layers: int = 2, tied: bool = False) -> nn.Module:
    config = ModelConfig(
        vocab_size=50,
        hidden_size=width,
        max_position_embeddings=64,
        decoder=StackConfig(
            num_hidden_layers=layers,
            attention=AttentionConfig(num_attention_heads=width // 16, num_key_value_heads=width // 16, head_dim=16),
            mlp=MLPConfig(intermediate_size=2 * width),
        ),
        tie_word_embeddings=tied,
        initializer_range=0.1,
    )
    return build_model(config, seed=0)


def loss(model: nn.Module) -> torch.Tensor:
    boundaries = torch.tensor([0, len(TOKENS) - 1], dtype=torch.int32)
    hidden = model(TOKENS[:-1], torch.arange(len(TOKENS) - 1), PackedContext(boundaries))
    return F.cross_entropy(model.logits(hidden), TOKENS[1:])


def growth(kind: str, scaled: bool) -> dict[str, float]:
    lr = {"muon": 1e-2, "lamb": 3e-2, "adafactor": 3e-2, "lion": 2e-3}.get(kind, 1e-2)

    def build(width: int) -> tuple[nn.Module, Callable[[float], None]]:
        multiplier = width / BASE if scaled else 1.0
        config = OptimizerConfig(kind=kind, lr=lr, width_multiplier=multiplier, weight_decay=0)
        model = llama(width)
        scale_initial_weights(model, config)
        return model, CompositeOptimizer(model, config).step

    return growth_with_width(coordinate_check(build, loss, WIDTHS))


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon", "lamb", "adafactor"])
def test_changes_do_not_depend_on_width(kind: str):
    slopes = growth(kind, scaled=True)
    assert "lm_head" in slopes
    assert len(slopes) == 2 + 2 * 7  # embedding, head, seven products a layer
    assert max(slopes.values()) < 0.3, slopes
    assert min(slopes.values()) > -0.45, slopes


def test_without_scaling_logits_blow_up():
    slopes = growth("adamw", scaled=False)
    assert slopes["lm_head"] > 0.5


def test_multipliers_by_role_width_and_depth():
    config = OptimizerConfig(kind="adamw", width_multiplier=4, depth_multiplier=9)
    found = learning_rate_multipliers(llama(64), config)
    assert found["embed_tokens.weight"] == found["decoder.norm.weight"] == 1
    assert found["lm_head.weight"] == 1 / 4
    assert found["decoder.layers.0.self_attn.q_proj.weight"] == pytest.approx(1 / 4 / 3)
    assert found["decoder.layers.0.self_attn.o_proj.weight"] == pytest.approx(1 / 4 / 9)
    assert learning_rate_multipliers(llama(64), OptimizerConfig()) == {}


def test_learning_rate_times_decay_is_the_same_at_every_width():
    groups = [
        (group["lr"], group["weight_decay"])
        for optimizer in CompositeOptimizer(
            llama(64), OptimizerConfig(kind="adamw", lr=0.01, width_multiplier=4)
        ).optimizers
        for group in optimizer.param_groups
    ]
    assert {round(lr * decay, 9) for lr, decay in groups if decay} == {0.001}
    assert {round(lr, 9) for lr, _ in groups} == {0.01, 0.0025}


def test_initial_weights_shrink_by_role():
    plain, scaled = llama(64), llama(64)
    scale_initial_weights(scaled, OptimizerConfig(kind="adamw", width_multiplier=4))
    before, after = dict(plain.named_parameters()), dict(scaled.named_parameters())
    for name, factor in (("embed_tokens.weight", 1), ("lm_head.weight", 4), ("decoder.norm.weight", 1)):
        torch.testing.assert_close(after[name] * factor, before[name], msg=name)
    name = "decoder.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(after[name] * 2, before[name])


def test_depth_keeps_the_movement_of_the_stream():
    def moved(layers: int, multiplier: float) -> float:
        model = llama(32, layers)
        config = OptimizerConfig(kind="adamw", lr=1e-3, depth_multiplier=multiplier, weight_decay=0)
        step = CompositeOptimizer(model, config).step
        return {row.module: row.change for row in coordinate_check(lambda _: (model, step), loss, (32,), steps=2)}[
            "lm_head"
        ]

    base = moved(2, 1.0)
    assert moved(32, 16.0) / base < 1.6
    assert moved(32, 1.0) / base > 2.0


def test_a_tied_head_is_refused():
    with pytest.raises(ConfigError, match="tied to the embedding"):
        CompositeOptimizer(llama(64, tied=True), OptimizerConfig(kind="adamw", width_multiplier=2))


@pytest.mark.parametrize("kind", ["sgd", "soap"])
def test_an_optimizer_without_a_rule_is_refused(kind: str):
    with pytest.raises(ConfigError, match=f"no rule for '{kind}'"):
        CompositeOptimizer(llama(64), OptimizerConfig(kind=kind, width_multiplier=2))
