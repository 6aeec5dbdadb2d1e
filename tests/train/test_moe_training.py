"""Mixtures of experts in training: routing losses are added, biases move with the load, every copy sees them."""

from pathlib import Path

import pytest
import torch
from train_case import VOCAB, same_weights, tiny_config, tiny_rows

from lmworks.core.errors import ConfigError
from lmworks.models.build import build_model
from lmworks.models.config import LayerConfig, ModelConfig, StackConfig
from lmworks.models.slots import AttentionConfig, MLPConfig, MoEConfig
from lmworks.models.transformer import Transformer
from lmworks.nn.routing import Router, load_balancing_loss, router_z_loss
from lmworks.objectives.causal_lm import causal_lm
from lmworks.train.metrics import read_metrics
from lmworks.train.moe import RoutedObjective, balanced
from lmworks.train.step import WorkingCopy, accumulate_gradients, finish_gradients
from lmworks.train.trainer import Trainer


def moe_config(**changes: object) -> ModelConfig:
    values = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, **changes}
    return ModelConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        max_position_embeddings=64,
        decoder=StackConfig(
            num_hidden_layers=2,
            attention=AttentionConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=8),
            mlp=MoEConfig(**values),
        ),
    )


def routers(model: torch.nn.Module) -> list[Router]:
    return [module for module in model.modules() if isinstance(module, Router)]


def moe_trainer(folder: Path, model: Transformer, **changes: object) -> Trainer:
    config = tiny_config(**changes)
    objective = balanced(causal_lm, model.config, config.router_bias_update_speed)
    return Trainer(model, objective, tiny_rows(config), config, folder)


def test_the_loss_is_that_of_the_tokens_and_of_the_routing():
    config = moe_config(router_aux_loss_coef=0.1, router_z_loss_coef=0.01)
    model, batch = build_model(config, seed=0), tiny_rows(tiny_config()).rows(0, 3)
    plain = causal_lm(model, batch)
    for router in routers(model):
        router.record = True
    causal_lm(model, batch)
    statistics = [router.statistics for router in routers(model)]
    expected = 0.1 * load_balancing_loss(statistics) + 0.01 * router_z_loss(statistics)
    loss = balanced(causal_lm, config, 1e-3)(model, batch)
    n = float(plain.n_targets)
    assert float(loss.loss_sum.detach()) / n == pytest.approx(
        float(plain.loss_sum.detach()) / n + expected.item(), rel=1e-5
    )
    assert float(loss.metrics["router_aux_loss"]) / n == pytest.approx(load_balancing_loss(statistics).item(), rel=1e-5)
    assert all(router.statistics is None and not router.record for router in routers(model))
    loss.loss_sum.backward()
    assert all(router.weight.grad is not None for router in routers(model))


def test_models_without_experts_and_without_coefficients_keep_their_objective():
    assert balanced(causal_lm, moe_config(), 1e-3) is causal_lm
    dense = moe_config().model_copy(
        update={"decoder": moe_config().decoder.model_copy(update={"mlp": MLPConfig(intermediate_size=32)})}
    )
    assert balanced(causal_lm, dense, 1e-3) is causal_lm


def test_layers_that_disagree_on_coefficients_are_refused():
    config = moe_config(router_aux_loss_coef=0.1)
    other = config.decoder.mlp.model_copy(update={"router_aux_loss_coef": 0.2})
    update = {"pattern": "ab", "layers": {"b": LayerConfig(mlp=other)}}
    changed = config.model_copy(update={"decoder": config.decoder.model_copy(update=update)})
    with pytest.raises(ConfigError, match="different router loss coefficients"):
        balanced(causal_lm, changed, 1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_biases_move_by_the_load_in_every_copy_and_survive_a_resume(tmp_path: Path, precision: str):
    config = moe_config(correction_bias=True, scoring_func="sigmoid")
    trainer = moe_trainer(tmp_path / "straight", build_model(config, seed=0), precision=precision)
    trainer.fit()
    pairs = list(zip(routers(trainer.model), routers(trainer.working.model), strict=True))
    for master, own in pairs:
        moved = master.e_score_correction_bias
        assert moved is not None
        assert moved is own.e_score_correction_bias
        # Eight moves of γ up or down each, or none where the load was just the mean.
        steps = moved / 1e-3
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert 0 < moved.abs().max() <= 8e-3 + 1e-6
    assert read_metrics(tmp_path / "straight" / "metrics.jsonl")[-1]["expert_max_over_mean"] >= 1

    def crash(end):
        if end.step == 5:
            raise KeyboardInterrupt
        return {}

    cut = moe_trainer(tmp_path / "cut", build_model(config, seed=0), precision=precision)
    cut.callbacks = (crash,)
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    resumed = moe_trainer(tmp_path / "cut", build_model(config, seed=5), precision=precision)
    resumed.fit()
    assert same_weights(trainer.model, resumed.model)


def test_a_step_that_is_not_made_moves_no_bias():
    model = build_model(moe_config(correction_bias=True), seed=0)
    objective = RoutedObjective(causal_lm, 0.0, 0.0)
    objective(model, tiny_rows(tiny_config()).rows(0, 2))
    assert objective.step_done(updated=False) == {}
    assert objective.step_done(updated=True) == {}
    assert all(not router.e_score_correction_bias.any() for router in routers(model))


def test_splits_give_the_gradient_of_a_mean_over_micro_batches():
    """The balancing loss is no sum over tokens: of equal micro-batches the step takes the mean, as others do."""
    config = moe_config(router_z_loss_coef=0.5)  # a mean over tokens: here the split must not matter at all
    gradients = []
    for size in (4, 2):
        model = build_model(config, seed=0)
        batches = [tiny_rows(tiny_config()).rows(start, size) for start in range(0, 4, size)]
        # Every token counts, so that targets weigh micro-batches as tokens do.
        batches = [type(b)(**{**vars(b), "loss_weights": torch.ones_like(b.loss_weights)}) for b in batches]
        objective = balanced(causal_lm, config, 0.0)
        totals = accumulate_gradients(WorkingCopy(model, torch.float32), objective, batches, "here")
        finish_gradients(model, totals.n_targets, None)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 1e-5
