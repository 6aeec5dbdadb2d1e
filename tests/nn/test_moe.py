"""The mixture of experts against transformers' blocks and the loop over experts: values and gradients."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from lmworks.nn.mlp import MLP
from lmworks.nn.moe import MixtureOfExperts, moe_reference
from lmworks.nn.routing import Router

WIDTH, INNER, SHARED, EXPERTS = 10, 7, 14, 6

SIZES = {"hidden_size": WIDTH, "moe_intermediate_size": INNER, "hidden_act": "silu"}
GROUPS = {"num_experts_per_tok": 3, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5}
DEEPSEEK = {**SIZES, "num_attention_heads": 2, **GROUPS, "n_routed_experts": EXPERTS, "n_shared_experts": 2}
ROWS = {
    "mixtral": (
        MixtralSparseMoeBlock,
        transformers.MixtralConfig(
            hidden_size=WIDTH, intermediate_size=INNER, num_local_experts=EXPERTS, num_experts_per_tok=2
        ),
        {"num_experts_per_tok": 2},
    ),
    "qwen3_moe": (
        Qwen3MoeSparseMoeBlock,
        transformers.Qwen3MoeConfig(**SIZES, num_experts=EXPERTS, num_experts_per_tok=4, norm_topk_prob=True),
        {"num_experts_per_tok": 4},
    ),
    "qwen2_moe": (
        Qwen2MoeSparseMoeBlock,
        transformers.Qwen2MoeConfig(
            **SIZES, num_experts=EXPERTS, num_experts_per_tok=2, shared_expert_intermediate_size=SHARED
        ),
        {"num_experts_per_tok": 2, "norm_topk_prob": False},
    ),
    "deepseek_v2": (
        DeepseekV2Moe,
        transformers.DeepseekV2Config(**DEEPSEEK, topk_method="group_limited_greedy"),
        {**GROUPS, "norm_topk_prob": False},
    ),
    "deepseek_v3": (
        DeepseekV3MoE,
        transformers.DeepseekV3Config(**DEEPSEEK, norm_topk_prob=True),
        {**GROUPS, "scoring_func": "sigmoid", "group_score": "top2_sum", "correction_bias": True},
    ),
    "switch": (
        SwitchTransformersSparseMLP,
        transformers.SwitchTransformersConfig(
            d_model=WIDTH, d_ff=INNER, num_experts=EXPERTS, expert_capacity=2, dropout_rate=0.0
        ),
        {"num_experts_per_tok": 1, "norm_topk_prob": False, "expert_capacity": 2},
    ),
}


def ours_in_their_shape(theirs: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Their tensors, or the gradients of these, under our names."""
    if isinstance(theirs, SwitchTransformersSparseMLP):
        stacked = {
            f"experts.{mine}_proj": torch.stack([tensors[f"experts.expert_{i}.{name}.weight"] for i in range(EXPERTS)])
            for mine, name in (("up", "wi"), ("down", "wo"))
        }
        return {"router.weight": tensors["router.classifier.weight"], **stacked}
    renamed = {
        name.replace("shared_expert.", "shared_experts.").replace("gate.", "router.")
        if name.startswith(("gate.", "shared_expert."))
        else name: tensor
        for name, tensor in tensors.items()
    }
    gate, up = renamed.pop("experts.gate_up_proj").chunk(2, 1)
    return {**renamed, "experts.gate_proj": gate, "experts.up_proj": up}


def mixture(shared: bool = False, shared_gate: bool = False, gated: bool = True, bias: bool = False, **values: object):
    values = {"num_experts_per_tok": 2, **values}
    mlp = MLP(WIDTH, SHARED, "silu", gated=True, bias=False) if shared else None
    moe = MixtureOfExperts(
        Router(WIDTH, EXPERTS, **values), WIDTH, INNER, "silu" if gated else "relu", gated=gated, bias=bias,
        shared_experts=mlp, shared_expert_gate=shared_gate,
    )  # fmt: skip
    for name, parameter in moe.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return moe


@pytest.mark.parametrize("name", ROWS)
def test_output_and_gradients_equal_transformers(name: str):
    block, config, values = ROWS[name]
    config._experts_implementation = "eager"
    theirs = block(config).eval()
    g = torch.Generator().manual_seed(1)
    theirs.load_state_dict({k: torch.randn(t.shape, generator=g) * 0.4 for k, t in theirs.state_dict().items()})
    mine = mixture(
        shared=name in ("qwen2_moe", "deepseek_v2", "deepseek_v3"),
        shared_gate=name == "qwen2_moe",
        gated=name != "switch",
        **values,
    )
    mine.load_state_dict(ours_in_their_shape(theirs, theirs.state_dict()))

    x, grad = torch.randn(2, 13, WIDTH, generator=g), torch.randn(2, 13, WIDTH, generator=g)
    packed = x.flatten(0, 1).requires_grad_()
    x.requires_grad_()
    expected, found = theirs(x), mine(packed, torch.tensor([0, 13, 26], dtype=torch.int32))
    torch.testing.assert_close(found, expected.flatten(0, 1), rtol=1e-5, atol=1e-5)

    expected.backward(grad)
    found.backward(grad.flatten(0, 1))
    torch.testing.assert_close(packed.grad, x.grad.flatten(0, 1), rtol=1e-4, atol=1e-5)
    wanted = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in theirs.named_parameters()}
    wanted = ours_in_their_shape(theirs, wanted)
    assert wanted.keys() == dict(mine.named_parameters()).keys()
    for key, parameter in mine.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key], rtol=1e-4, atol=1e-5, msg=lambda m, key=key: key + m)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 9), st.sampled_from([1, 2, EXPERTS]), st.booleans(), st.booleans(), st.integers(0, 10**6)
)  # fmt: skip
def test_grouped_equals_the_loop_over_experts(tokens: int, k: int, gated: bool, bias: bool, seed: int):
    torch.manual_seed(seed)
    moe = mixture(num_experts_per_tok=k, gated=gated, bias=bias, shared=gated)
    x = torch.randn(tokens, WIDTH, requires_grad=True)
    found, expected = moe(x), moe_reference(moe, x)
    assert found.shape == (tokens, WIDTH)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    grad, inputs = torch.randn(tokens, WIDTH), (x, *moe.parameters())
    wanted = torch.autograd.grad(expected, inputs, grad)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, grad), wanted, rtol=1e-4, atol=1e-5)


def test_all_tokens_on_one_expert_and_the_others_empty():
    moe = mixture(num_experts_per_tok=1, correction_bias=True)
    moe.router.e_score_correction_bias[3] = 10.0
    x = torch.randn(5, WIDTH)
    found = moe(x)
    torch.testing.assert_close(found, moe_reference(moe, x))
    found.sum().backward()
    assert moe.experts.up_proj.grad[3].any()
    assert not moe.experts.up_proj.grad[[0, 1, 2, 4, 5]].any()


def test_a_token_does_not_depend_on_its_neighbors():
    moe = mixture(shared=True)
    x, order = torch.randn(12, WIDTH), torch.randperm(12)
    together = moe(x)
    torch.testing.assert_close(moe(x[order]), together[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat([moe(row[None]) for row in x]), together, rtol=1e-5, atol=1e-6)


def test_with_equal_experts_the_mixture_is_one_mlp():
    moe = mixture(num_experts_per_tok=3)
    mlp = MLP(WIDTH, INNER, "silu", gated=True, bias=False)
    for name in ("gate_proj", "up_proj", "down_proj"):
        getattr(moe.experts, name).data.copy_(getattr(mlp, name).weight.expand(EXPERTS, -1, -1))
    x = torch.randn(8, WIDTH)
    torch.testing.assert_close(moe(x), mlp(x), rtol=1e-5, atol=1e-6)


def test_bfloat16_stays_bfloat16_and_near():
    torch.manual_seed(0)
    moe = mixture(shared=True, bias=True).bfloat16()
    x = torch.randn(9, WIDTH).bfloat16()
    found = moe(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), moe.float()(x.float()), rtol=0.05, atol=0.05)


def test_tokens_beyond_the_capacity_are_zeros_and_documents_do_not_compete():
    torch.manual_seed(0)
    moe = mixture(num_experts_per_tok=1, norm_topk_prob=False, expert_capacity=1)
    x = torch.randn(1, WIDTH).expand(3, -1)
    out = moe(x)
    assert out[0].any()
    assert not out[1:].any()
    apart = moe(x, torch.tensor([0, 1, 2, 3]))
    torch.testing.assert_close(apart, out[:1].expand(3, -1))


def test_parameters_have_the_documented_names_and_shapes():
    shapes = {k: tuple(v.shape) for k, v in mixture(shared=True, shared_gate=True, bias=True).state_dict().items()}
    assert shapes == {
        "router.weight": (EXPERTS, WIDTH),
        "experts.gate_proj": (EXPERTS, INNER, WIDTH),
        "experts.gate_proj_bias": (EXPERTS, INNER),
        "experts.up_proj": (EXPERTS, INNER, WIDTH),
        "experts.up_proj_bias": (EXPERTS, INNER),
        "experts.down_proj": (EXPERTS, WIDTH, INNER),
        "experts.down_proj_bias": (EXPERTS, WIDTH),
        "shared_experts.gate_proj.weight": (SHARED, WIDTH),
        "shared_experts.up_proj.weight": (SHARED, WIDTH),
        "shared_experts.down_proj.weight": (WIDTH, SHARED),
        "shared_expert_gate.weight": (1, WIDTH),
    }
    assert "experts.gate_proj" not in mixture(gated=False).state_dict()
