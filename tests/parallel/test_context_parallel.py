"""Tokens of one batch over several ranks: losses and gradients are those of one process, whatever attention is."""

import random
from functools import partial

import pytest
import torch
import torch.distributed as dist

from lmworks.core.errors import ParallelError
from lmworks.kernels.attention import varlen_attention_reference
from lmworks.kernels.masks import Causal, Full, Window
from lmworks.kernels.scores import DistanceBias, Scores
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.position_slots import AlibiPositions, LearnedPositions, RelativeBiasPositions
from lmworks.models.slots import AttentionConfig, LinearAttentionConfig, MLAConfig, MLPConfig, MoEConfig
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import next_token_document, pack
from lmworks.objectives.causal_lm import causal_lm, token_loss
from lmworks.objectives.loss import Loss
from lmworks.parallel.context import context_parallel, require_splittable, zigzag_shares
from lmworks.parallel.processes import run_processes
from lmworks.parallel.ring import ring_attention
from lmworks.parallel.ulysses import require_heads

LENGTHS = (3, 41, 1, 29, 16, 7)


def softmax(**values):
    return AttentionConfig(num_attention_heads=8, num_key_value_heads=4, head_dim=8, **values)


def config(attention, mlp=None, **values):
    stack = StackConfig(
        num_hidden_layers=2, attention=attention, mlp=mlp or MLPConfig(intermediate_size=48),
        causal=values.pop("causal", True),
    )  # fmt: skip
    return ModelConfig(
        vocab_size=67, hidden_size=32, max_position_embeddings=64, decoder=stack, initializer_range=0.1, **values
    )


CASES = {
    "grouped heads": config(softmax()),
    "window": config(softmax(sliding_window=5)),
    "soft cap": config(softmax(attn_logit_softcapping=2.0)),
    "sinks": config(softmax(sinks=True)),
    "experts": config(softmax(), MoEConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)),
    "latent": config(
        MLAConfig(num_attention_heads=4, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6)
    ),
    "slopes": config(softmax(), positions=AlibiPositions()),
    "both ways": config(softmax(), causal=False, positions=LearnedPositions()),
}


def documents():
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, 67, (n + 1,), generator=generator).tolist() for n in LENGTHS]
    return pack([next_token_document(document) for document in ids])


def run(objective, model_config, batch, group=None):
    """Loss sum, count and gradients, added up over the ranks of the group."""
    model = build_model(model_config, seed=0)
    loss = objective(model, batch)
    loss.loss_sum.backward()
    values = [loss.loss_sum.detach(), loss.n_targets.detach().double()]
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    if group is not None:
        for tensor in (*values, *gradients.values()):
            dist.all_reduce(tensor, group=group)
    return values, gradients


def gaps(objective, parallel, model_config, group):
    """How far the parallel objective is from one process: loss, count, the worst gradient."""
    batch = documents()
    (loss, count), gradients = run(objective, model_config, batch)
    (split_loss, split_count), split = run(parallel, model_config, batch, group)
    worst = max(float((split[n] - g).norm() / g.norm()) for n, g in gradients.items() if g.norm() > 0)
    return float((split_loss - loss).abs() / loss), float((split_count - count).abs()), worst


def prefix_lm(model, batch):
    """Every document's first half is seen by all of it."""
    context = PackedContext(batch.cu_seqlens, prefix_lengths=batch.cu_seqlens.diff() // 2)
    hidden = model(batch.input_ids, batch.positions, context)
    return Loss(token_loss(model, hidden, batch.targets, batch.loss_weights), batch.loss_weights.sum())


def pooled(model, batch):
    """A loss of whole documents."""
    hidden = model(batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens))
    vectors = torch.segment_reduce(hidden, "mean", lengths=batch.cu_seqlens.diff().long())
    return Loss(vectors.square().sum(), torch.tensor(float(len(vectors))), {"documents": torch.tensor(6.0)})


def attention_gap(group):
    """Ring attention against the formula, keys that nobody sees included; float64 shows that it is exact."""
    generator = torch.Generator().manual_seed(3)
    cu_seqlens = torch.tensor([0, 2, 40, 41, 55])
    shares, own = zigzag_shares(cu_seqlens.tolist(), group.size()), dist.get_rank(group)
    worst = 0.0
    rules = [
        Scores(0.4), Scores(0.4, Full()), Scores(0.4, Causal() & Window(4)), Scores(0.4, softcap=1.5),
        Scores(0.4, bias=DistanceBias(torch.tensor([0.5, 0.25, 0.1, 0.0]))),
        Scores(0.4, sinks=torch.randn(4, generator=generator)),
        Scores(0.4, ~Causal()),  # the last token of a document sees nothing
    ]  # fmt: skip
    for rule in rules:
        leaves = [torch.randn(55, h, d, generator=generator).requires_grad_() for h, d in ((4, 6), (2, 6), (2, 5))]
        weights = torch.randn(55, 4, 5, generator=generator)
        expected = varlen_attention_reference(*leaves, cu_seqlens, rule)
        wanted = torch.autograd.grad((expected * weights).sum(), leaves)
        rows = shares[own].indices
        local = [leaf.detach()[rows].requires_grad_() for leaf in leaves]
        got = ring_attention(*local, rule, shares, group)
        found = torch.autograd.grad((got * weights[rows]).sum(), local)
        for a, b in zip((got, *found), (expected[rows], *(w[rows] for w in wanted)), strict=True):
            worst = max(worst, float((a - b).abs().max()))
    return worst


def errors(group):
    """What is refused, by name."""
    model, batch = build_model(CASES["grouped heads"], seed=0), documents()
    messages = {}
    for name, objective in (("prefix", prefix_lm), ("documents", lambda m, b: m.embed_documents(None, None))):
        with pytest.raises(ParallelError) as caught:
            context_parallel(objective, group)(model, batch)
        messages[name] = str(caught.value)
    with pytest.raises(ParallelError) as caught:
        context_parallel(causal_lm, group)(model, pack([next_token_document([1, 2])]))
    messages["short"] = str(caught.value)
    return messages


def measure():
    world = dist.group.WORLD
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    pair = pairs[dist.get_rank() // 2]
    found = {}
    for name, model_config in CASES.items():
        for method in ("ring", "ulysses"):
            for group in (pair, world):
                split = context_parallel(causal_lm, group, method=method)
                found[name, method, group.size()] = gaps(causal_lm, split, model_config, group)
    bias = config(
        softmax(), positions=RelativeBiasPositions(relative_attention_num_buckets=8, relative_attention_max_distance=20)
    )
    found["trained bias"] = gaps(causal_lm, context_parallel(causal_lm, world, method="ulysses"), bias, world)
    shared = config(AttentionConfig(num_attention_heads=8, num_key_value_heads=2, head_dim=8))
    found["two kv heads"] = gaps(causal_lm, context_parallel(causal_lm, world, method="ulysses"), shared, world)
    for objective in (prefix_lm, pooled):
        for method in ("ring", "ulysses"):
            split = context_parallel(objective, world, method=method, gather=True)
            found[objective.__name__, method] = gaps(objective, split, CASES["grouped heads"], world)
    return found, attention_gap(world), errors(world)


@pytest.fixture(scope="module")
def measured():
    return run_processes(measure, 4)


@pytest.mark.slow  # `lmworks prove parallel` measures the same in less time
def test_losses_and_gradients_are_those_of_one_process(measured):
    for found, _, _ in measured:
        assert len(found) == 2 * 2 * len(CASES) + 6
        for name, (loss, count, gradient) in found.items():
            assert loss < 1e-6, name
            assert count < 1e-6, name
            assert gradient < 1e-6, name


@pytest.mark.slow  # `lmworks prove parallel` measures the same in less time
def test_ring_attention_is_the_formula_under_every_rule(measured):
    assert max(gap for _, gap, _ in measured) < 2e-5


@pytest.mark.slow  # `lmworks prove parallel` measures the same in less time
def test_what_cannot_be_split_says_what_to_do(measured):
    for _, _, messages in measured:
        assert "gather=True" in messages["prefix"]
        assert "`embed_documents` needs whole documents" in messages["documents"]
        assert "1 tokens cannot be cut into 8 runs" in messages["short"]


@pytest.mark.parametrize("seed", range(20))
def test_shares_cover_every_token_once_and_pieces_say_where_it_stands(seed):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 30) for _ in range(draw.randint(1, 8))]
    bounds = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    ranks = draw.randint(1, max(1, bounds[-1] // 2))
    shares = zigzag_shares(bounds, ranks)
    assert sorted(torch.cat([share.indices for share in shares]).tolist()) == list(range(bounds[-1]))
    for share in shares:
        standing = [
            bounds[p.document] + p.place + i
            for p in share.pieces
            for i in range(p.length)
            if p.place + i < lengths[p.document]
        ]
        assert standing == share.indices.tolist()


@pytest.mark.parametrize("documents", [1, 2, 4])
def test_ranks_have_equal_work_under_a_causal_mask(documents):
    bounds = [512 // documents * i for i in range(documents + 1)]
    work = [
        sum(p.length * p.place + p.length * (p.length + 1) // 2 for p in share.pieces)
        for share in zigzag_shares(bounds, 4)
    ]
    assert max(work) == min(work)


def test_heads_that_do_not_divide_name_the_rule():
    for possible in ((8, 8, 4), (8, 4, 4), (8, 2, 4), (8, 1, 8)):
        require_heads(*possible)
    for heads, kv_heads, ranks in ((6, 6, 4), (12, 3, 2), (12, 6, 4)):
        with pytest.raises(ParallelError, match=f"{heads} heads with {kv_heads} heads of keys and values"):
            require_heads(heads, kv_heads, ranks)


@pytest.mark.parametrize(
    ("refused", "method", "reason"),
    [
        (config(LinearAttentionConfig(num_attention_heads=4, head_dim=8)), "ulysses", "mixes whole documents"),
        (config(softmax(), positions=RelativeBiasPositions(relative_attention_num_buckets=8)), "ring", "trained bias"),
        (
            config(
                softmax(),
                MoEConfig(num_experts=4, num_experts_per_tok=1, moe_intermediate_size=8, expert_capacity=2),
            ),
            "ring",
            "expert_capacity",
        ),
    ],
)
def test_models_that_need_whole_documents_are_refused_before_the_start(refused, method, reason):
    with torch.device("meta"):
        model = build_model(refused)
    with pytest.raises(ParallelError, match=reason):
        require_splittable(model, method)
    require = partial(require_splittable, build_model(CASES["grouped heads"], seed=0))
    require("ring")
    require("ulysses")
