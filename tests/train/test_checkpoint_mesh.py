"""What one mesh saves another takes up, bit for bit, and it is what one process would have saved."""

import resource
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from lmworks.core.errors import CheckpointError, DiskFullError
from lmworks.models.build import build_model
from lmworks.models.parallel_plan import shard_units, tensor_plan
from lmworks.models.slots import MoEConfig
from lmworks.nn.batch import next_token_document, pack
from lmworks.objectives.causal_lm import causal_lm
from lmworks.optim.averaging import WeightAverage
from lmworks.optim.optimizer import CompositeOptimizer, OptimizerConfig
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.distribute import distribute
from lmworks.parallel.expert import parallelize_experts
from lmworks.parallel.mesh import make_mesh
from lmworks.parallel.processes import run_processes
from lmworks.proofs.tiny import LLAMA as ODD
from lmworks.train.checkpoint import Checkpoints
from lmworks.train.guard import GuardConfig, StepGuard
from lmworks.train.loss_scaling import DynamicLossScale, LossScaleConfig
from lmworks.train.run_state import RunState

LLAMA = ODD.model_copy(update={"vocab_size": 132})
EXPERTS = LLAMA.model_copy(
    update={
        "decoder": LLAMA.decoder.model_copy(
            update={"mlp": MoEConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)}
        )
    }
)
ONE, OTHER = 3, 4
"""Seeds of weights: of the run that is saved, and of the one that takes it up."""


def arranged(parallel: dict, seed: int, kind: str = "adamw", **changes: int):
    """A run's state on a mesh, and what calls its model."""
    config = LLAMA.model_copy(update=changes)
    model, runner = build_model(config, seed=seed), None
    if parallel:
        mesh = make_mesh(ParallelConfig(**parallel))
        plan, units = tensor_plan(config, mesh.config.tensor), shard_units(config)
        runner = distribute(model, mesh, plan=plan, units=units)
    optimizer = CompositeOptimizer(model, OptimizerConfig(kind=kind))
    scale = DynamicLossScale(LossScaleConfig())
    return RunState(model, optimizer, StepGuard(GuardConfig()), WeightAverage(model, 0.9), scale), runner


def step_once(state, runner):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, LLAMA.vocab_size, (40,), generator=generator).tolist()
    batch = pack([next_token_document(tokens)])
    if runner is None:
        causal_lm(state.model, batch).loss_sum.backward()
    else:
        with runner.micro_batch(last=True):
            runner(causal_lm, batch).loss_sum.backward()
    state.optimizer.step(1.0)
    state.average.update(0)
    state.guard.judge(0, 1.5, 2.5)
    state.loss_scale.update(overflow=True)


def whole(state):
    return {n: (t.full_tensor() if isinstance(t, DTensor) else t).clone() for n, t in state.state_dict().items()}


def save(folder, parallel, kind="adamw", asynchronous=False):
    state, runner = arranged(parallel, ONE, kind)
    step_once(state, runner)
    saved = whole(state)
    checkpoints = Checkpoints(folder, 1)
    checkpoints.save(1, state.state_dict(), {"run": 1}, "v", asynchronous=asynchronous)
    if asynchronous:
        with torch.no_grad():
            for parameter in state.model.parameters():
                parameter.zero_()  # the next step changes what is being written
    checkpoints.wait()
    return saved


def resume(folder, parallel, kind="adamw"):
    state, runner = arranged(parallel, OTHER, kind)
    found = Checkpoints(folder, 1).newest()
    assert (found.step, found.identity) == (1, {"run": 1})
    state.load(found)
    taken = whole(state)
    step_once(state, runner)  # the optimizer goes on with what it was given
    return taken


def require_same(one, other):
    assert one.keys() == other.keys()
    assert [n for n in one if one[n].dtype != other[n].dtype or not same_bits(one[n], other[n])] == []


def same_bits(one, other):
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def save_and_resume(folder, pairs, kinds=("adamw",)):
    """Between meshes of the ranks that are here."""
    for number, (before, after) in enumerate(pairs):
        place = folder / str(number)
        kind = kinds[number % len(kinds)]
        require_same(save(place, before, kind), resume(place, after, kind))


TWO = (
    {"shard": 2},
    [({"shard": 2}, {"tensor": 2}), ({"data": 2}, {"shard": 2, "zero_stage": 1})],
)
FOUR = (
    {"data": 2, "shard": 2},
    [
        ({"shard": 4}, {"tensor": 2, "data": 2}),
        ({"shard": 2, "tensor": 2}, {"data": 2, "shard": 2}),
        ({"shard": 4, "zero_stage": 1}, {"shard": 2, "tensor": 2}),
        ({"data": 4}, {"shard": 4, "zero_stage": 2}),
    ],
)
"""Of that many ranks: a mesh that saves for other numbers of ranks, and pairs of meshes; the last saves replicas."""


def every_form(folder, mesh, pairs):
    whole_mesh = {"shard": dist.get_world_size()}
    require_same(resume(folder / "one", whole_mesh), Checkpoints(folder / "one", 1).newest().load())
    save_and_resume(folder / "pairs", pairs, ("adamw", "lion"))
    return save(folder / "many", mesh, asynchronous=True)


def two_ranks(folder):
    return resume(folder / "many", {"shard": 2})


@pytest.mark.parametrize(("ranks", "forms"), [(2, TWO), pytest.param(4, FOUR, marks=pytest.mark.slow)])
def test_any_mesh_takes_up_what_any_other_saved(tmp_path: Path, ranks: int, forms):
    alone = save(tmp_path / "one", {})
    saved = run_processes(every_form, ranks, tmp_path, *forms)
    fewer = run_processes(two_ranks, 2, tmp_path) if ranks > 2 else []
    for taken in [*fewer, resume(tmp_path / "many", {}), *saved[1:]]:
        require_same(taken, saved[0])
    assert saved[0].keys() == alone.keys()
    sizes = {
        name: sum(file.stat().st_size for file in (tmp_path / name).rglob("*.distcp"))
        for name in ("one", "many", f"pairs/{len(forms[1]) - 1}")
    }
    # Replicas are written once. Each part has a header, as large as the tiny tensors here.
    assert max(sizes.values()) < 1.8 * min(sizes.values())


def refusals(folder):
    """What each rank is told of: a full disk of one of them, a damaged part, another vocabulary."""
    state, _ = arranged({"shard": 2}, ONE)
    checkpoints = Checkpoints(folder, 2)
    checkpoints.save(1, state.state_dict(), {}, "v")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
    with pytest.raises(DiskFullError, match=r"step-00000002 failed: File too large \(rank 1\)"):
        checkpoints.save(2, state.state_dict(), {}, "v", asynchronous=True) and checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    other, _ = arranged({"tensor": 2}, OTHER, vocab_size=140)
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight' is torch.float32 \[132, 48\] .* \[140, 48\]"):
        other.load(checkpoints.newest())
    checkpoints.save(3, state.state_dict(), {}, "v")
    if dist.get_rank() == 0:
        (folder / "step-00000003" / "state" / "__1_0.distcp").write_bytes(b"")
    return checkpoints.newest().step


def test_a_failure_of_one_rank_is_raised_on_all(tmp_path: Path):
    assert run_processes(refusals, 2, tmp_path) == [1, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003.damaged"]


def experts(folder):
    """Experts that each rank has some of are saved as the one process that loads them has them."""
    model = build_model(EXPERTS, seed=ONE)
    mesh = make_mesh(ParallelConfig(data=2, expert=2))
    parallelize_experts(model, mesh.group("expert"))
    optimizer = CompositeOptimizer(model, OptimizerConfig(kind="adamw"))
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step(1.0)
    state = RunState(model, optimizer, StepGuard(GuardConfig()), None, None)
    checkpoints = Checkpoints(folder, 1)
    checkpoints.save(1, state.state_dict(), {}, "v")
    saved = whole(state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    state.load(checkpoints.newest())
    require_same(whole(state), saved)
    return saved


def test_experts_are_saved_whole(tmp_path: Path):
    saved, _ = run_processes(experts, 2, tmp_path)
    model = build_model(EXPERTS, seed=ONE)
    optimizer = CompositeOptimizer(model, OptimizerConfig(kind="adamw"))
    state = RunState(model, optimizer, StepGuard(GuardConfig()), None, None)
    state.load(Checkpoints(tmp_path, 1).newest())
    require_same(state.state_dict(), saved)
    for parameter in (reference := build_model(EXPERTS, seed=ONE)).parameters():
        parameter.grad = parameter.detach().clone()
    CompositeOptimizer(reference, OptimizerConfig(kind="adamw")).step(1.0)
    require_same(dict(model.named_parameters()), dict(reference.named_parameters()))
