"""Experts over several ranks: outputs and gradients are those of one process, be a rank's tokens few or none."""

import pytest
import torch
import torch.distributed as dist

from lmworks.core.errors import ParallelError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.slots import AttentionConfig, MLPConfig, MoEConfig
from lmworks.nn.batch import next_token_document, pack
from lmworks.nn.moe import Experts
from lmworks.objectives.causal_lm import causal_lm
from lmworks.parallel.expert import (
    ExpertShard,
    expert_parameters,
    gather_experts,
    parallelize_experts,
    require_experts,
    sum_gradients,
)
from lmworks.parallel.processes import run_processes

LENGTHS = (9, 21, 2, 14)
"""A document for each of four ranks, so that their tokens differ in number."""


def config(mlp):
    stack = StackConfig(
        num_hidden_layers=2, attention=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8),
        mlp=mlp,
    )  # fmt: skip
    return ModelConfig(vocab_size=67, hidden_size=32, max_position_embeddings=64, decoder=stack, initializer_range=0.1)


def moe(**values):
    return MoEConfig(**({"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16} | values))


CASES = {
    "softmax": moe(),
    "one choice": moe(num_experts_per_tok=1, norm_topk_prob=False),
    "sigmoid, shared": moe(scoring_func="sigmoid", shared_intermediate_size=16),
    "biases": moe(bias=True, router_bias=True),
    "capacity": moe(expert_capacity=3),
}


def documents():
    generator = torch.Generator().manual_seed(1)
    return [next_token_document(torch.randint(0, 67, (n + 1,), generator=generator).tolist()) for n in LENGTHS]


def gap(mlp, group, replicas=None):
    """How far losses and gradients of experts over a group, or over a group and its replicas, are from one process."""
    tokens = group if replicas is None else dist.group.WORLD
    ranks, rank = group.size(), dist.get_rank(group)
    whole = build_model(config(mlp), seed=0)
    loss = causal_lm(whole, pack(documents())).loss_sum
    loss.backward()
    split = build_model(config(mlp), seed=0)
    assert parallelize_experts(split, group) == 2
    own = causal_lm(split, pack(documents()[dist.get_rank(tokens) :: tokens.size()])).loss_sum
    own.backward()
    sum_gradients(split, tokens, replicas)
    total = own.detach().clone()
    dist.all_reduce(total, group=tokens)
    mine = dict(expert_parameters(split))
    assert len(mine) == len([n for n, _ in whole.named_parameters() if ".experts." in n])
    worst = 0.0
    for name, parameter in split.named_parameters():
        expected = whole.get_parameter(name.replace(".experts.local.", ".experts.")).grad
        if name in mine:
            expected = expected.chunk(ranks)[rank]
        if expected.norm() > 0:
            worst = max(worst, float((parameter.grad - expected).norm() / expected.norm()))
    gather_experts(split)
    state = whole.state_dict()
    same = all(torch.equal(tensor, state[name]) for name, tensor in split.state_dict().items())
    return float((total - loss).abs() / loss), worst, same and list(state) == list(split.state_dict())


def without_rows(group):
    """All rows are of one rank and one expert; the others send nothing and still take part."""
    rank = dist.get_rank(group)
    torch.manual_seed(0)
    experts = Experts(8, 16, 12, "silu", gated=True, bias=False)
    shard = ExpertShard(experts, group)
    x = torch.randn(5 if rank == 1 else 0, 16, requires_grad=True)
    sizes = torch.tensor([0] * 6 + [len(x), 0])
    y = shard(x, sizes)
    y.sum().backward()
    experts(x, sizes).sum().backward()
    dist.all_reduce(experts.up_proj.grad, group=group)
    expected = experts.up_proj.grad.chunk(group.size())[rank]
    return float((shard.local.up_proj.grad - expected).abs().max()), len(y)


def measure():
    world = dist.group.WORLD
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    groups = (pairs[dist.get_rank() // 2], world)
    found = {(name, group.size()): gap(mlp, group) for name, mlp in CASES.items() for group in groups}
    replicas = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    found["two groups of two"] = gap(CASES["softmax"], groups[0], replicas[dist.get_rank() % 2])
    with pytest.raises(ParallelError) as caught:
        parallelize_experts(build_model(config(moe(num_experts=6)), seed=0), world)
    return found, without_rows(world), str(caught.value)


@pytest.fixture(scope="module")
def measured():
    return run_processes(measure, 4)


def test_losses_gradients_and_weights_are_those_of_one_process(measured):
    for found, _, _ in measured:
        assert len(found) == 2 * len(CASES) + 1
        for name, (loss, gradient, same_weights) in found.items():
            assert loss < 1e-6, name
            assert gradient < 1e-6, name
            assert same_weights, name


def test_a_rank_without_tokens_takes_part(measured):
    for rank, (_, (difference, rows), _) in enumerate(measured):
        assert difference < 1e-6
        assert rows == (5 if rank == 1 else 0)


def test_experts_that_do_not_divide_are_refused(measured):
    for _, _, message in measured:
        assert "6 experts of a layer do not divide among 4 ranks" in message


def test_a_model_without_experts_is_refused():
    dense = build_model(config(MLPConfig(intermediate_size=16)), seed=0)
    with pytest.raises(ParallelError, match="no layer with experts"):
        require_experts(dense, 2)
