"""Routers against those of transformers, and by their defining properties; losses and balance."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter, load_balancing_loss_func
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from lmworks.core.errors import ConfigError
from lmworks.nn.routing import (
    Router,
    RoutingStatistics,
    load_balance,
    load_balancing_loss,
    router_z_loss,
    update_correction_bias,
)

WIDTH, EXPERTS, TOKENS = 10, 6, 23


def dense(chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[N, X] weight of every expert, so that the order of the chosen does not matter."""
    return torch.zeros(len(chosen), EXPERTS).scatter_add(1, chosen, weights.float())


ROWS = {
    "mixtral": (
        MixtralTopKRouter,
        transformers.MixtralConfig(hidden_size=WIDTH, num_local_experts=EXPERTS, num_experts_per_tok=2),
        {"num_experts_per_tok": 2},
    ),
    "qwen3_moe": (
        Qwen3MoeTopKRouter,
        transformers.Qwen3MoeConfig(hidden_size=WIDTH, num_experts=EXPERTS, num_experts_per_tok=3),
        {"num_experts_per_tok": 3, "norm_topk_prob": False},
    ),
    "gpt_oss": (
        GptOssTopKRouter,
        transformers.GptOssConfig(hidden_size=WIDTH, num_local_experts=EXPERTS, num_experts_per_tok=2),
        {"num_experts_per_tok": 2, "bias": True},
    ),
    "deepseek_v2": (
        DeepseekV2TopkRouter,
        transformers.DeepseekV2Config(
            hidden_size=WIDTH, num_attention_heads=2, n_routed_experts=EXPERTS, num_experts_per_tok=2, n_group=3,
            topk_group=2, topk_method="group_limited_greedy", routed_scaling_factor=1.5,
        ),
        {
            "num_experts_per_tok": 2, "norm_topk_prob": False, "n_group": 3, "topk_group": 2,
            "routed_scaling_factor": 1.5,
        },
    ),
    "deepseek_v3": (
        DeepseekV3TopkRouter,
        transformers.DeepseekV3Config(
            hidden_size=WIDTH, n_routed_experts=EXPERTS, num_experts_per_tok=3, n_group=3, topk_group=2,
            routed_scaling_factor=2.5, norm_topk_prob=True,
        ),
        {
            "num_experts_per_tok": 3, "scoring_func": "sigmoid", "n_group": 3, "topk_group": 2,
            "group_score": "top2_sum", "routed_scaling_factor": 2.5, "correction_bias": True,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_experts_weights_and_gradients_equal_transformers(name: str):
    theirs_class, config, values = ROWS[name]
    g = torch.Generator().manual_seed(3)
    theirs, mine = theirs_class(config), Router(WIDTH, EXPERTS, **values)
    state = {key: torch.randn(t.shape, generator=g) for key, t in theirs.state_dict().items()}
    theirs.load_state_dict(state)
    mine.load_state_dict(state)
    x, grad = torch.randn(TOKENS, WIDTH, generator=g), torch.randn(TOKENS, EXPERTS, generator=g)
    _, weights, chosen = theirs(x)
    expected, found = dense(chosen, weights), dense(*mine(x))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    (wanted,) = torch.autograd.grad(expected, theirs.weight, grad)
    torch.testing.assert_close(torch.autograd.grad(found, mine.weight, grad)[0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("capacity", [1, 3, 64])
def test_switch_drops_what_transformers_drops(capacity: int):
    config = transformers.SwitchTransformersConfig(d_model=WIDTH, num_experts=EXPERTS, expert_capacity=capacity)
    theirs = switch.SwitchTransformersTop1Router(config).eval()
    mine = Router(WIDTH, EXPERTS, 1, norm_topk_prob=False, expert_capacity=capacity)
    mine.weight.data.copy_(theirs.classifier.weight.data.normal_(generator=torch.Generator().manual_seed(0)))
    x = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    mask, probability, _ = theirs(x)
    cu_seqlens = torch.tensor([0, TOKENS, 2 * TOKENS], dtype=torch.int32)
    found = dense(*mine(x.flatten(0, 1), cu_seqlens))
    torch.testing.assert_close(found, (mask * probability).flatten(0, 1).float(), rtol=1e-6, atol=1e-6)
    assert (found.sum(1) == 0).any() == (capacity < 64)


def test_first_choices_come_before_second_ones_and_no_document_sees_another():
    router = Router(2, 2, 2, expert_capacity=1)
    router.weight.data.copy_(torch.eye(2))
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # each token's second choice is the other's first
    _, weights = router(x)
    assert torch.equal(weights[:, 1], torch.zeros(2))
    assert (weights[:, 0] > 0.5).all()
    twice = torch.cat((x, x))
    _, both = router(twice, torch.tensor([0, 2, 4]))
    assert torch.equal(both, torch.cat((weights, weights)))
    _, alone = router(twice)
    assert torch.equal(alone[2:], torch.zeros(2, 2))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["softmax", "sigmoid"]), st.sampled_from(["max", "top2_sum"]))
def test_the_choice_stays_within_the_best_groups_and_weights_sum_to_one(seed: int, scoring: str, group_score: str):
    g = torch.Generator().manual_seed(seed)
    router = Router(4, 12, 3, scoring_func=scoring, n_group=4, topk_group=2, group_score=group_score)
    router.weight.data.normal_(generator=g)
    x = torch.randn(9, 4, generator=g)
    chosen, weights = router(x)
    logits = x @ router.weight.T
    scores = (logits.softmax(-1) if scoring == "softmax" else logits.sigmoid()).view(9, 4, 3)
    best = scores.max(-1).values if group_score == "max" else scores.topk(2, -1).values.sum(-1)
    allowed = best.topk(2, -1).indices
    assert all(set((row // 3).tolist()) <= set(groups.tolist()) for row, groups in zip(chosen, allowed, strict=True))
    assert all(len(set(row.tolist())) == 3 for row in chosen)
    torch.testing.assert_close(weights.sum(1), torch.ones(9))


def test_normalizing_the_chosen_is_the_softmax_over_the_chosen():
    router = Router(WIDTH, EXPERTS, 3)
    x = torch.randn(TOKENS, WIDTH) * 30
    chosen, weights = router(x)
    logits = F.linear(x, router.weight)
    torch.testing.assert_close(weights, logits.gather(1, chosen).softmax(-1), rtol=1e-4, atol=1e-6)


def test_the_correction_bias_changes_the_choice_and_not_the_weight():
    router = Router(WIDTH, EXPERTS, 1, scoring_func="sigmoid", norm_topk_prob=False, correction_bias=True)
    x = torch.randn(TOKENS, WIDTH)
    before, _ = router(x)
    router.e_score_correction_bias[4] = 2.0  # more than any sigmoid
    chosen, weights = router(x)
    assert (chosen == 4).all()
    assert not (before == 4).all()
    torch.testing.assert_close(weights[:, 0], F.linear(x, router.weight).sigmoid()[:, 4])
    assert "e_score_correction_bias" in router.state_dict()
    assert [name for name, _ in router.named_parameters()] == ["weight"]


def test_the_correction_bias_evens_the_load():
    torch.manual_seed(0)
    router = Router(WIDTH, EXPERTS, 2, scoring_func="sigmoid", correction_bias=True)
    router.record = True
    x = torch.randn(500, WIDTH) + 1.0
    loads = []
    for _ in range(200):
        router(x)
        loads.append(load_balance(router.statistics.load))
        router.e_score_correction_bias.copy_(
            update_correction_bias(router.e_score_correction_bias, router.statistics.load, 0.01)
        )
    assert loads[0].max_over_mean > 1.5
    assert loads[-1].max_over_mean < 1.15
    assert loads[-1].entropy > max(loads[0].entropy, 0.99)
    step = update_correction_bias(torch.zeros(3), torch.tensor([4, 1, 1]), 0.5)
    assert step.tolist() == [-0.5, 0.5, 0.5]


def recorded(tokens: int, k: int, seed: int) -> RoutingStatistics:
    torch.manual_seed(seed)
    router = Router(WIDTH, EXPERTS, k)
    router.record = True
    router(torch.randn(tokens, WIDTH))
    return router.statistics


@pytest.mark.parametrize("k", [1, 2])
def test_losses_equal_transformers_over_layers(k: int):
    layers = [recorded(17, k, 0), recorded(17, k, 1)]
    logits = tuple(layer.logits for layer in layers)
    expected = load_balancing_loss_func(logits, EXPERTS, k)
    torch.testing.assert_close(load_balancing_loss(layers), expected)
    wanted = torch.autograd.grad(expected, logits, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(load_balancing_loss(layers), logits, retain_graph=True), wanted)
    torch.testing.assert_close(router_z_loss(layers), switch.router_z_loss_func(torch.cat(logits)[None]))


def test_the_switch_loss_equals_transformers_and_is_k_when_even():
    layer = recorded(40, 1, 2)
    theirs = switch.load_balancing_loss_func(layer.logits.softmax(-1)[None], layer.chosen.T)
    torch.testing.assert_close(load_balancing_loss([layer]), theirs)
    chosen = torch.tensor([[0, 1], [2, 3], [4, 5]])
    even = RoutingStatistics(torch.zeros(3, 6), chosen, torch.full((3, 2), 0.5))
    assert float(load_balancing_loss([even])) == pytest.approx(2.0)


def test_nothing_is_recorded_unless_asked():
    router = Router(WIDTH, EXPERTS, 2)
    router(torch.randn(3, WIDTH))
    assert router.statistics is None
    router.record = True
    chosen, weights = router(torch.randn(3, WIDTH))
    assert torch.equal(router.statistics.chosen, chosen)
    assert torch.equal(router.statistics.weights, weights)
    one = RoutingStatistics(torch.zeros(2, 4), torch.tensor([[2], [2]]), torch.ones(2, 1))
    assert one.load.tolist() == [0, 0, 2, 0]


def test_balance_of_even_and_of_collapsed_loads():
    assert load_balance(torch.tensor([5, 5, 5, 5])) == load_balance(torch.zeros(4, dtype=torch.int64))
    collapsed = load_balance(torch.tensor([0, 8, 0, 0]))
    assert (collapsed.max_over_mean, collapsed.entropy) == (4.0, 0.0)
    half = load_balance(torch.tensor([3, 3, 0, 0]))
    assert half.entropy == pytest.approx(math.log(2) / math.log(4))


def test_the_router_works_in_float32():
    torch.manual_seed(0)
    router = Router(WIDTH, EXPERTS, 2).bfloat16()
    x = torch.randn(TOKENS, WIDTH).bfloat16()
    chosen, weights = router(x)
    assert weights.dtype == torch.float32
    wide = F.linear(x.float(), router.weight.float()).softmax(-1).topk(2)
    assert torch.equal(chosen, wide.indices)
    torch.testing.assert_close(weights, wide.values / wide.values.sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_experts_per_tok": 7}, "7 is impossible: 6 experts"),
        ({"num_experts_per_tok": 0}, "0 is impossible"),
        ({"num_experts_per_tok": 3, "n_group": 3, "topk_group": 1}, "3 is impossible: 2 experts"),
        ({"num_experts_per_tok": 1, "n_group": 4, "topk_group": 1}, "n_group 4"),
        ({"num_experts_per_tok": 1, "n_group": 2, "topk_group": 3}, "topk_group 3"),
        ({"num_experts_per_tok": 1, "n_group": 6, "topk_group": 2, "group_score": "top2_sum"}, "'top2_sum'"),
    ],
)
def test_impossible_choices_are_refused(values: dict[str, int], said: str):
    with pytest.raises(ConfigError, match=said):
        Router(WIDTH, EXPERTS, **values)
