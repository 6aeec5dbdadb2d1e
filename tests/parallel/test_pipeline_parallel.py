"""Layers over several ranks: every schedule gives the losses and gradients of one process, step after step."""

import itertools
from functools import cache

import pytest
import torch
import torch.distributed as dist

from lmworks.core.errors import ParallelError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.position_slots import LearnedPositions, RelativeBiasPositions
from lmworks.models.slots import AttentionConfig, MLPConfig, MoEConfig
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import next_token_document, pack
from lmworks.objectives.causal_lm import causal_lm
from lmworks.objectives.loss import Loss
from lmworks.parallel.bubble import Durations, computation_order, predicted_bubble_share, simulate
from lmworks.parallel.context import context_parallel
from lmworks.parallel.pipeline import Pipeline
from lmworks.parallel.pipeline_schedules import SCHEDULES, require_schedule, stage_ranks
from lmworks.parallel.pipeline_stages import cut_stage, require_stages, shared_parameters
from lmworks.parallel.processes import run_processes

MICRO_BATCHES = 8


def config(layers=8, mlp=None, **values):
    stack = StackConfig(
        num_hidden_layers=layers,
        attention=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8),
        mlp=mlp or MLPConfig(intermediate_size=48),
        causal=values.pop("causal", True),
    )
    slot = "decoder" if stack.causal else "encoder"
    sizes = {"vocab_size": 67, "hidden_size": 32, "max_position_embeddings": 64, "initializer_range": 0.1}
    return ModelConfig(**{slot: stack}, **sizes, **values)


CASES = {
    "untied": config(tie_word_embeddings=False),
    "tied": config(positions=LearnedPositions()),
    "bias of all layers": config(
        positions=RelativeBiasPositions(relative_attention_num_buckets=8, relative_attention_max_distance=20)
    ),
    "experts": config(mlp=MoEConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)),
    "encoder": config(causal=False, positions=LearnedPositions()),
}


def micro_batches(seed):
    """Of different lengths, and different numbers of documents."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for i in range(MICRO_BATCHES):
        lengths = [9 + 4 * i, 7, 2 + i][: 1 + i % 3]
        ids = [torch.randint(0, 67, (n + 1,), generator=generator).tolist() for n in lengths]
        batches.append(pack([next_token_document(document) for document in ids]))
    return batches


def with_metrics(model, batch):
    """Asks for a shape before it calls the model, and reports more than the loss."""
    rows = len(model.lm_head.weight)
    loss = causal_lm(model, batch)
    return Loss(loss.loss_sum, loss.n_targets, {"rows": torch.tensor(float(rows))})


@cache
def one_process(case):
    """Losses and counts of two steps, and the gradients of both together."""
    model, sums = build_model(CASES[case], seed=0), []
    for step in range(2):
        losses = [causal_lm(model, batch) for batch in micro_batches(step)]
        for loss in losses:
            loss.loss_sum.backward()
        sums.append(tuple(sum(float(getattr(x, name).detach()) for x in losses) for name in ("loss_sum", "n_targets")))
    return sums, {n: p.grad for n, p in model.named_parameters()}


def gap(case, schedule, group):
    """How far the pipeline's sums and gradients are from one process, gradients accumulated over two steps."""
    sums, gradients = one_process(case)
    pipeline = Pipeline(
        build_model(CASES[case], seed=0), with_metrics, group, schedule=schedule, num_microbatches=MICRO_BATCHES,
        max_tokens=64,
    )  # fmt: skip
    losses = []
    for step, (loss, count) in enumerate(sums):
        found = pipeline.step(micro_batches(step))
        losses.append(abs(found.loss_sum - loss) / loss)
        assert found.n_targets == count
        assert found.metrics == {"rows": 67.0 * MICRO_BATCHES}
    names = [name for name, _ in pipeline.named_parameters()]
    worst = max(
        float((p.grad - gradients[n]).norm() / gradients[n].norm()) for n, p in pipeline.named_parameters()
    )  # fmt: skip
    counted = [name for name in names if name not in pipeline.counted_elsewhere()]
    return max(losses), worst, counted, sorted(gradients)


def split_twice(schedule, method, layers, tokens):
    """Layers over one group and tokens over another: how far the gradients are from one process."""
    sums, gradients = one_process("untied")
    pipeline = Pipeline(
        build_model(CASES["untied"], seed=0), context_parallel(causal_lm, tokens, method=method), layers,
        schedule=schedule, num_microbatches=MICRO_BATCHES, max_tokens=64,
    )  # fmt: skip
    worst = 0.0
    for step, (loss, _) in enumerate(sums):
        total = torch.tensor(pipeline.step(micro_batches(step)).loss_sum, dtype=torch.float64)
        dist.all_reduce(total, group=tokens)
        worst = max(worst, abs(float(total) - loss) / loss)
    for name, parameter in pipeline.named_parameters():
        dist.all_reduce(parameter.grad, group=tokens)
        worst = max(worst, float((parameter.grad - gradients[name]).norm() / gradients[name].norm()))
    return worst


def refusals(group):
    """What is refused is refused by all ranks, none of which waits for another."""
    batches = micro_batches(0)
    model = build_model(CASES["tied"], seed=0)

    def idle(model, batch):
        return Loss(torch.zeros(()), torch.zeros(()))

    def strange(model, batch):
        class Odd(PackedContext):
            pass

        return model(batch.input_ids, batch.positions, Odd(batch.cu_seqlens))

    def made(objective=causal_lm, **values):
        values = {"schedule": "1f1b", "num_microbatches": MICRO_BATCHES, "max_tokens": 64} | values
        return Pipeline(model, objective, group, **values)

    attempts = {
        "number": lambda: made().step(batches[:3]),
        "length": lambda: made(max_tokens=20).step(batches),
        "idle": lambda: made(idle).step(batches),
        "strange": lambda: made(strange).step(batches),
        "few": lambda: made(schedule="dualpipev", num_microbatches=group.size()),
    }
    messages = {}
    for name, attempt in attempts.items():
        with pytest.raises(ParallelError) as caught:
            attempt()
        messages[name] = str(caught.value)
    return messages


def measure():
    world = dist.group.WORLD
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    groups = (pairs[dist.get_rank() // 2], world)
    found = {
        ("untied", schedule, group.size()): gap("untied", schedule, group)
        for group in groups
        for schedule in (SCHEDULES if group is world else ("1f1b", "dualpipev"))
    }
    for name, schedule in itertools.product(("tied", "bias of all layers", "experts", "encoder"), ("1f1b", "zbv")):
        found[name, schedule, 4] = gap(name, schedule, world)
    across = [dist.new_group([0, 2]), dist.new_group([1, 3])][dist.get_rank() % 2]
    hybrid = {
        (schedule, method): split_twice(schedule, method, across, groups[0])
        for schedule, method in (("1f1b", "ring"), ("zb_h1", "ulysses"), ("zbv", "ring"))
    }
    return found, refusals(world), hybrid


@pytest.fixture(scope="module")
def measured():
    return run_processes(measure, 4)


@pytest.mark.slow  # `lmworks prove parallel` measures the same in less time
def test_losses_and_gradients_are_those_of_one_process(measured):
    for found, _, _ in measured:
        assert len(found) == len(SCHEDULES) + 10
        for name, (loss, gradient, _, _) in found.items():
            assert loss < 1e-6, name
            assert gradient < 1e-6, name


@pytest.mark.slow  # `lmworks prove parallel` measures the same in less time
def test_every_weight_is_on_some_rank_and_counted_once(measured):
    for name, (_, _, _, names) in measured[0][0].items():
        if name[2] == 4:
            assert sorted(n for found, _, _ in measured for n in found[name][2]) == names, name


@pytest.mark.slow  # `lmworks prove parallel` measures the same in less time
def test_layers_and_tokens_can_be_split_at_once(measured):
    for _, _, hybrid in measured:
        for name, gap in hybrid.items():
            assert gap < 1e-6, name


@pytest.mark.slow  # `lmworks prove parallel` measures the same in less time
def test_what_cannot_run_is_refused_by_every_rank(measured):
    for _, messages, _ in measured:
        assert "a step has 8 micro-batches, not 3" in messages["number"]
        assert "stages pass at most 20" in messages["length"]
        assert "does not call the model" in messages["idle"]
        assert "seen through a Odd" in messages["strange"]
        assert "at least 8 micro-batches" in messages["few"]


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_stages_one_after_another_are_the_model(stages):
    model = build_model(CASES["tied"], seed=0).eval()
    batch = micro_batches(0)[4]
    context = PackedContext(batch.cu_seqlens)
    x = None
    for index in range(stages):
        part = cut_stage(model, index, stages)
        x = part.decoder(part.embed(batch.input_ids) if index == 0 else x, batch.positions, context)
    assert torch.equal(x, model(batch.input_ids, batch.positions, context))
    names = {n for i in range(stages) for n, _ in cut_stage(model, i, stages).named_parameters(remove_duplicate=False)}
    assert names == {n for n, _ in model.named_parameters(remove_duplicate=False)}


def test_tied_embeddings_are_shared_unless_their_stages_are_on_one_rank():
    model = build_model(CASES["tied"], seed=0)
    assert [(n, r) for n, _, r in shared_parameters(model, stage_ranks("1f1b", 4))] == [("embed_tokens.weight", (0, 3))]
    assert shared_parameters(model, stage_ranks("zbv", 4)) == []
    assert shared_parameters(build_model(CASES["untied"], seed=0), stage_ranks("1f1b", 4)) == []


def test_models_that_cannot_be_cut_say_why():
    stack = StackConfig(
        num_hidden_layers=4, attention=AttentionConfig(num_attention_heads=4, num_key_value_heads=4, head_dim=8),
        mlp=MLPConfig(intermediate_size=16),
    )  # fmt: skip
    both = ModelConfig(
        vocab_size=67, hidden_size=32, max_position_embeddings=64,
        encoder=stack.model_copy(update={"causal": False}),
        decoder=stack.model_copy(update={"cross_attention": stack.attention}),
    )  # fmt: skip
    with torch.device("meta"):
        model = build_model(both)
        shallow = build_model(config(layers=3))
    with pytest.raises(ParallelError, match="encoder and decoder cannot be cut"):
        require_stages(model, 2)
    with pytest.raises(ParallelError, match="3 different layers cannot be cut into 4 stages"):
        require_stages(shallow, 4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_schedule_computes_everything_once_and_its_bubble_is_the_predicted_one(schedule, ranks):
    for rounds, durations in itertools.product(
        (2, 4), (Durations(), Durations(1, 1.25, 0.75), Durations(1, 1.5, 1), Durations(2, 2, 2))
    ):
        count = rounds * ranks
        stages = len(stage_ranks(schedule, ranks))
        order = computation_order(schedule, ranks, count)
        done = [(c.stage, part, c.micro_batch) for r in order.values() for c in r for part in c.kind.replace("B", "IW")]
        assert sorted(done) == sorted(itertools.product(range(stages), "FIW", range(count)))
        played = simulate(schedule, ranks, count, durations).bubble_share
        predicted = predicted_bubble_share(schedule, ranks, count, durations)
        if schedule != "dualpipev" or durations.forward == durations.input == durations.weight:
            assert played == pytest.approx(predicted, abs=1e-9)
        else:
            assert 0 < played < predicted_bubble_share("1f1b", ranks, count, durations)


def test_a_slow_network_lengthens_the_timeline():
    quick, slow = (simulate("1f1b", 4, 8, Durations(transfer=t)) for t in (0.0, 0.5))
    assert slow.length >= quick.length + 2 * 3 * 0.5
    assert slow.bubble_share > quick.bubble_share


def test_schedules_that_cannot_run_say_what_would():
    for schedule, ranks, count, words in (
        ("1f1b", 4, 3, "at least 4 micro-batches"),
        ("dualpipev", 4, 7, "at least 8 micro-batches"),
        ("interleaved_1f1b", 4, 9, "in 2 rounds"),
        ("zb_h1", 2, 5, "in 2 rounds"),
        ("spiral", 2, 4, "there is no pipeline schedule 'spiral'"),
    ):
        with pytest.raises(ParallelError, match=words):
            require_schedule(schedule, ranks, count)
