"""One step of an objective under one form of parallelism, and under none: losses and gradients, whole on every rank.

Knows no bound and no table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lmworks.nn.batch import Batch
from lmworks.objectives.arrange import join
from lmworks.parallel.config import DIMENSIONS, ParallelConfig
from lmworks.parallel.context import context_parallel
from lmworks.parallel.distribute import distribute
from lmworks.parallel.expert import expert_parameters, parallelize_experts, sum_gradients
from lmworks.parallel.mesh import Mesh, make_mesh
from lmworks.parallel.pipeline import Pipeline
from lmworks.parallel.pipeline_schedules import SCHEDULES, stage_ranks
from lmworks.parallel.support import check_support
from lmworks.proofs.parallel_objectives import Case, Objective, net

RANKS = 4
MESHES = 6
LAYERS = 2
"""Of a model that is not cut into stages."""


@dataclass(frozen=True)
class Form:
    """A way to share a step."""

    config: ParallelConfig
    micro_batches: int = 2
    experts: bool = False
    """The model's feed-forward nets are mixtures of experts."""

    @property
    def layers(self) -> int:
        """Of the model: one for each stage."""
        config = self.config
        return LAYERS if config.pipeline == 1 else len(stage_ranks(config.pipeline_schedule, config.pipeline))

    @property
    def degrees(self) -> dict[str, int]:
        """By dimension."""
        return {name: getattr(self.config, name) for name in (*DIMENSIONS, "expert")}


def _pipeline(micro_batches: int, experts: bool = False, **fields: object) -> Form:
    return Form(ParallelConfig.parse(fields), micro_batches, experts)


FORMS: dict[str, Form] = {
    "DDP": Form(ParallelConfig(data=4)),
    "ZeRO-1": Form(ParallelConfig(shard=4, zero_stage=1)),
    "ZeRO-2": Form(ParallelConfig(shard=4, zero_stage=2)),
    "ZeRO-3": Form(ParallelConfig(shard=4)),
    "HSDP 2x2": Form(ParallelConfig(data=2, shard=2)),
    "TP": Form(ParallelConfig(tensor=4, sequence_parallel=False)),
    "TP+SP": Form(ParallelConfig(tensor=4)),
    "ring": Form(ParallelConfig(context=4)),
    "Ulysses": Form(ParallelConfig(context=4, context_method="ulysses")),
    "EP": Form(ParallelConfig(data=4, expert=4), experts=True),
    **{f"pipeline {name}, 8": _pipeline(8, pipeline=4, pipeline_schedule=name) for name in SCHEDULES},
    **{f"pipeline {name}, 16": _pipeline(16, pipeline=4, pipeline_schedule=name) for name in SCHEDULES},
    "DP x TP+SP 2x2": Form(ParallelConfig(data=2, tensor=2)),
    "FSDP x TP+SP 2x2": Form(ParallelConfig(shard=2, tensor=2)),
    "DP x ring 2x2": Form(ParallelConfig(data=2, context=2)),
    "FSDP x Ulysses 2x2": Form(ParallelConfig(shard=2, context=2, context_method="ulysses")),
    "ring x TP+SP 2x2": Form(ParallelConfig(context=2, tensor=2)),
    "DP x EP 2x2": Form(ParallelConfig(data=4, expert=2), experts=True),
    "FSDP x EP 2x2": Form(ParallelConfig(shard=4, expert=2), experts=True),
    "ring x EP 2x2": Form(ParallelConfig(data=2, context=2, expert=4), experts=True),
    "EP x TP+SP 2x2": Form(ParallelConfig(data=2, tensor=2, expert=2), experts=True),
    "DP x pipeline 2x2": _pipeline(4, data=2, pipeline=2),
    "ring x pipeline 2x2": _pipeline(8, context=2, pipeline=2, pipeline_schedule="zb_h1"),
    "EP x pipeline 2x2": _pipeline(4, True, data=2, expert=2, pipeline=2, pipeline_schedule="interleaved_1f1b"),
}
"""By name; the number behind a schedule is that of micro-batches."""

COVER = (("ZeRO-3", "TP+SP", "pipeline 1f1b, 8", "ring"), ("HSDP 2x2", "EP", "Ulysses", "pipeline zbv, 8"))
"""Forms that touch every mechanism, in two halves: a short proof takes one of them in turn for each objective."""


@dataclass(frozen=True)
class Outcome:
    """What a step gives, per target."""

    gradients: dict[str, Tensor]
    """By name."""
    loss: float

    def gap(self, other: Outcome) -> Gap:
        """How far the other is from this one."""
        assert self.gradients.keys() == other.gradients.keys(), "a form changes no parameter's name"
        expected, found = ([o.gradients[name].double() for name in self.gradients] for o in (self, other))
        difference = sum(float((f - e).square().sum()) for e, f in zip(expected, found, strict=True))
        whole = sum(float(e.square().sum()) for e in expected)
        return Gap((difference / whole) ** 0.5, abs(other.loss - self.loss) / abs(self.loss))


@dataclass(frozen=True)
class Gap:
    """How far one form is from one process."""

    gradient: float
    """‖difference‖ / ‖gradient‖, over all parameters as one vector."""
    loss: float
    """Relative."""


def one_process(case: Case, seed: int, layers: int, *, experts: bool = False, splits: int = 1) -> Outcome:
    """All units in `splits` micro-batches."""
    model, _, _ = case.build(layers, seed, net(experts=experts), 1)
    units = case.units(seed)
    totals = torch.zeros(2, dtype=torch.float64)
    for index in range(splits):
        loss = case.objective(model, join(units[index::splits]))
        torch.autograd.backward(loss.loss_sum)
        totals += torch.stack([loss.loss_sum.detach().double(), loss.n_targets.detach().double()])
    return _outcome({name: _of(p) for name, p in model.named_parameters()}, totals)


def distributed(case: Case, form: Form, seed: int, meshes: Meshes) -> tuple[Outcome, nn.Module, Mesh]:
    """The same on the calling rank's part of a mesh.

    Returns:
        The outcome, equal on all ranks; the model as arranged, with sums as gradients; the mesh.

    Raises:
        ParallelError: the model or the objective cannot be arranged so.
    """
    config = form.config
    model, plan, units = case.build(form.layers, seed, net(experts=form.experts), config.tensor)
    check_support(model, config, plan=plan, num_microbatches=form.micro_batches)
    mesh = meshes.of(config)
    own = case.units(seed)[mesh.batch_rank :: config.batch_degree]
    batches = [join(own[i :: form.micro_batches]) for i in range(form.micro_batches)]
    objective: Objective = case.objective
    if config.context > 1:
        objective = context_parallel(
            objective, mesh.group("context"), method=config.context_method, gather=case.gather
        )  # fmt: skip
    held = None
    if config.pipeline > 1:
        held, totals = _through_stages(model, objective, batches, mesh)
    else:
        runner = distribute(model, mesh, plan=plan, units=units)
        totals = torch.zeros(2, dtype=torch.float64)
        for index, batch in enumerate(batches):
            with runner.micro_batch(last=index + 1 == len(batches)):
                loss = runner(objective, batch)
                torch.autograd.backward(loss.loss_sum)
            totals += torch.stack([loss.loss_sum.detach().double(), loss.n_targets.detach().double()])
    gradients = _whole_gradients(model, mesh, held)
    if held is not None:
        gradients = _of_all_stages(gradients, mesh)
    return _outcome(gradients, torch.stack(mesh.sum_tokens(totals.unbind()))), model, mesh


class Meshes:
    """Meshes that were made; forms of the same degrees share process groups, of which each keeps threads."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, ...], Mesh] = {}

    def of(self, config: ParallelConfig) -> Mesh:
        """The mesh of a form."""
        key = degrees_of(config)
        if key not in self._made:
            self._made[key] = make_mesh(config)
        return replace(self._made[key], config=config)


def degrees_of(config: ParallelConfig) -> tuple[int, ...]:
    """What the groups of a mesh follow from."""
    return tuple(getattr(config, name) for name in (*DIMENSIONS, "expert"))


def few_meshes(chosen: Sequence[tuple[str, str]], forms: Mapping[str, Form]) -> list[list[int]]:
    """Numbers of pairs of an objective and a form, in parts that need at most `MESHES` meshes each.

    Groups cannot be left for good while tensors know them by name, so each part gets processes of its own.
    """
    by_mesh: dict[tuple[int, ...], list[int]] = {}
    for number, (_, form) in enumerate(chosen):
        by_mesh.setdefault(degrees_of(forms[form].config), []).append(number)
    parts = list(by_mesh.values())
    return [[n for part in parts[i : i + MESHES] for n in part] for i in range(0, len(parts), MESHES)]


def _through_stages(
    model: nn.Module, objective: Objective, batches: Sequence[Batch], mesh: Mesh
) -> tuple[set[int], Tensor]:
    """A step of a pipeline: which parameters the caller has gradients of; sums of losses and counts."""
    config = mesh.config
    if config.expert > 1:
        parallelize_experts(model, mesh.group("expert"))
    pipeline = Pipeline(
        model, objective, mesh.group("pipeline"), schedule=config.pipeline_schedule, num_microbatches=len(batches),
        max_tokens=max(batch.num_tokens for batch in batches),
    )  # fmt: skip
    sums = pipeline.step(batches)
    stages = nn.ModuleList(pipeline.parts.values())
    sum_gradients(stages, mesh.group("tokens"), mesh.group("expert_replica"))
    held = {id(parameter) for parameter in stages.parameters()}
    return held, torch.tensor([sums.loss_sum, sums.n_targets], dtype=torch.float64)


def _of_all_stages(gradients: dict[str, Tensor], mesh: Mesh) -> dict[str, Tensor]:
    everywhere: list[dict[str, Tensor]] = [{}] * mesh.size("pipeline")
    dist.all_gather_object(everywhere, gradients, group=mesh.group("pipeline"))
    return {name: gradient for found in everywhere for name, gradient in found.items()}


def _whole_gradients(model: nn.Module, mesh: Mesh, held: set[int] | None = None) -> dict[str, Tensor]:
    """Gradients by their names in one process, gathered where they are in parts; of `held` parameters alone."""
    split = {name for name, _ in expert_parameters(model)}
    gradients = {}
    for name, parameter in model.named_parameters():
        if held is not None and id(parameter) not in held:
            continue
        gradient = _of(parameter)
        if isinstance(gradient, DTensor):
            gradient = gradient.full_tensor()
        if name in split:
            parts = [torch.empty_like(gradient) for _ in range(mesh.size("expert"))]
            dist.all_gather(parts, gradient.contiguous(), group=mesh.group("expert"))
            gradient = torch.cat(parts)
        gradients[name.replace(".experts.local.", ".experts.")] = gradient
    return gradients


def _outcome(gradients: dict[str, Tensor], totals: Tensor) -> Outcome:
    loss_sum, count = map(float, totals)
    return Outcome({name: gradient / count for name, gradient in gradients.items()}, loss_sum / count)


def _of(parameter: nn.Parameter) -> Tensor:
    """A gradient; zero of what has no part in the loss."""
    return torch.zeros_like(parameter.detach()) if parameter.grad is None else parameter.grad
