"""Pipeline parallelism: each rank holds some layers, and micro-batches flow through all of them.

The schedules are torch's; what is added is what a packed batch and an objective need. Micro-batches may differ in
length: hidden states are padded on the wire to `max_tokens`, and computed without padding. Losses are sums, gradients
are added up and never divided. Every stage calls the objective, which does with the batch whatever it does; where it
calls the model, the stage runs its layers on what the stage before sent, and unless it is the last hands the result
on. So any objective that calls the model once runs unchanged. Knows no model class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from lmworks.core.errors import LMWorksError, ParallelError
from lmworks.nn.attention_context import AttentionContext, PackedContext
from lmworks.nn.routing import Router
from lmworks.parallel.context import SplitContext
from lmworks.parallel.pipeline_schedules import ScheduleName, build_schedule, require_schedule, stage_ranks
from lmworks.parallel.pipeline_stages import cut_stage, require_stages, shared_parameters

Objective = Callable[[Any, Any], Any]
"""From a model and a batch to an `objectives.loss.Loss`."""


@dataclass(frozen=True)
class StepSums:
    """Sums over the micro-batches of one step, the same on all ranks of the pipeline."""

    loss_sum: float
    n_targets: float
    metrics: dict[str, float] = field(default_factory=dict)


class Pipeline:
    """A model over the ranks of a group, by layers.

    Args:
        model: the same whole model on every rank; the caller's stages share its weights, the rest can be dropped.
        objective: calls the model once.
        group: the ranks in the order of stages, such as `Mesh.group("pipeline")`.
        schedule: who computes what when.
        num_microbatches: of every step.
        max_tokens: of the longest micro-batch there will be.

    Raises:
        ParallelError: model, schedule and numbers do not fit; nothing was sent.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, group: dist.ProcessGroup, *, schedule: ScheduleName = "1f1b",
        num_microbatches: int, max_tokens: int,
    ) -> None:  # fmt: skip
        require_schedule(schedule, group.size(), num_microbatches)
        ranks = stage_ranks(schedule, group.size())
        require_stages(model, len(ranks))
        self.group, self.rank, self.max_tokens = group, dist.get_rank(group), max_tokens
        self.num_microbatches = num_microbatches
        self.parts = {i: cut_stage(model, i, len(ranks)) for i, rank in ranks.items() if rank == self.rank}
        """The caller's stages by number."""
        self._objective, self._device = objective, next(model.parameters()).device
        self._shared = [entry for entry in shared_parameters(model, ranks) if self.rank in entry[2]]
        self._skeleton = _without_numbers(model)
        self._runs = {
            i: _Run(part, self._skeleton, objective, i, len(ranks), max_tokens) for i, part in self.parts.items()
        }
        self._last_rank = ranks[len(ranks) - 1]
        self._schedule = build_schedule(
            schedule, [self._stage(run, len(ranks), model) for run in self._runs.values()], num_microbatches,
            # A new tensor: torch detaches the stage's output in place before the weights' backward pass.
            loss_fn=lambda loss, _: loss.sum(),
        )  # fmt: skip
        self._accepted = False

    def step(self, micro_batches: Sequence[Any]) -> StepSums:
        """Run all micro-batches forward and backward; gradients are added to those that are there.

        Args:
            micro_batches: the same on every rank, `num_microbatches` of them, of at most `max_tokens` tokens each.

        Raises:
            ParallelError: their number or length is another, or the objective cannot be run in stages.
        """
        self._require(micro_batches)
        earlier = self._set_aside()
        seeds = torch.randint(2**62, (len(micro_batches),)).tolist()
        for run in self._runs.values():
            run.begin(micro_batches, seeds)
        numbers = torch.arange(len(micro_batches))
        first, last = 0 in self._runs, self.rank == self._last_rank
        try:
            self._schedule.step(
                *((numbers,) if first else ()), target=numbers if last else None, losses=[] if last else None,
                return_outputs=False, micro_batch=numbers,
            )  # fmt: skip
        except RuntimeError as error:  # torch wraps what a stage raises
            if isinstance(error.__cause__, LMWorksError):
                raise error.__cause__ from None
            raise
        self._add_shared_gradients(earlier)
        sums = [self._runs[max(self._runs)].sums() if last else None]
        dist.broadcast_object_list(sums, group=self.group, group_src=self._last_rank)
        assert sums[0] is not None, "the last stage has the sums"
        return sums[0]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights of the caller's stages, by their names in the whole model, each once."""
        seen = set()
        for part in self.parts.values():
            for name, parameter in part.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield name, parameter

    def counted_elsewhere(self) -> frozenset[str]:
        """Weights that a rank before the caller holds too: sums over all ranks, such as norms, leave them out here."""
        return frozenset(name for name, _, ranks in self._shared if ranks[0] != self.rank)

    def _stage(self, run: _Run, num_stages: int, model: Any) -> Any:
        """Torch's stage; shapes are given, so that it need not find them out by running the model."""
        from torch.distributed.pipelining import PipelineStage

        weight = next(model.parameters())
        hidden = torch.empty(
            self.max_tokens, model.config.hidden_size, dtype=weight.dtype, device="meta", requires_grad=True
        )
        return PipelineStage(
            run, run.index, num_stages, weight.device, group=self.group,
            input_args=torch.zeros(1, dtype=torch.int64) if run.index == 0 else hidden,
            output_args=torch.empty((), device="meta", requires_grad=True) if run.is_last else hidden,
        )  # fmt: skip

    def _require(self, micro_batches: Sequence[Any]) -> None:
        if len(micro_batches) != self.num_microbatches:
            raise ParallelError(
                f"a step has {self.num_microbatches} micro-batches, not {len(micro_batches)}",
                "Give as many as the pipeline was made for",
            )
        longest = max(batch.num_tokens for batch in micro_batches)
        if longest > self.max_tokens:
            raise ParallelError(
                f"a micro-batch has {longest} tokens, and stages pass at most {self.max_tokens}", "Raise `max_tokens`"
            )
        if not self._accepted:  # on all ranks alike, before any of them waits for another
            with _random(0, self._device):
                _call(self._objective, _View(self._tried, self._skeleton, self._skeleton), micro_batches[0])
            self._accepted = True

    def _tried(self, _: Tensor, __: Tensor, context: AttentionContext, ___: Tensor | None) -> Tensor:
        """Stands for the layers when an objective is tried."""
        if type(context) not in (PackedContext, SplitContext):
            raise ParallelError(
                f"tokens seen through a {type(context).__name__} cannot be passed between stages",
                "Set `pipeline: 1` for this objective",
            )
        if any(isinstance(module, Router) and module.record for module in self._skeleton.modules()):
            raise ParallelError(
                "the objective balances the experts of all layers, and a stage has some of them",
                "Set router_aux_loss_coef and router_z_loss_coef to 0 and correction_bias to false, or `pipeline: 1`",
            )
        raise _HandedOn(torch.empty(0))

    def _set_aside(self) -> list[Tensor | None]:
        """Take away the gradients of shared weights from earlier steps, which are sums over ranks already."""
        earlier = [parameter.grad for _, parameter, _ in self._shared]
        for _, parameter, _ in self._shared:
            parameter.grad = None
        return earlier

    @torch.no_grad()
    def _add_shared_gradients(self, earlier: list[Tensor | None]) -> None:
        """Every rank that holds a weight gets the sum of all gradients of it, added in the same order."""
        for (_, parameter, ranks), before in zip(self._shared, earlier, strict=True):
            if not parameter.requires_grad:
                continue
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients = {r: own if r == self.rank else torch.empty_like(own) for r in ranks}
            others = [r for r in ranks if r != self.rank]
            operations = [dist.P2POp(dist.isend, own, group=self.group, group_peer=r) for r in others]
            operations += [dist.P2POp(dist.irecv, gradients[r], group=self.group, group_peer=r) for r in others]
            for work in dist.batch_isend_irecv(operations):
                work.wait()
            total = torch.stack([gradients[r] for r in ranks]).sum(0)
            parameter.grad = total if before is None else before.add_(total)


class _HandedOn(BaseException):
    """Ends the objective's call in a stage that is not the last; no `except Exception` of an objective stops it."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _Run(nn.Module):
    """What torch calls as a stage: the objective, with the model of this stage."""

    def __init__(
        self, part: nn.Module, skeleton: nn.Module, objective: Objective, index: int, num_stages: int, max_tokens: int
    ) -> None:
        super().__init__()
        self.part, self.objective, self.index, self.max_tokens = part, objective, index, max_tokens
        self.is_last = index == num_stages - 1
        self._skeleton = (skeleton,)  # in a tuple, for torch not to take it for a part of the stage
        self._batches: Sequence[Any] = ()
        self._seeds: list[int] = []
        self._losses: list[Any] = []

    def begin(self, batches: Sequence[Any], seeds: list[int]) -> None:
        """Take the micro-batches of a step."""
        self._batches, self._seeds, self._losses = batches, seeds, []

    def forward(self, received: Tensor, *, micro_batch: Tensor) -> Tensor:
        """[max_tokens, E] hidden states of the stage before -> those of this one, or the last one's sum of losses."""
        number = int(micro_batch)

        def layers(
            input_ids: Tensor, positions: Tensor, context: AttentionContext, token_type_ids: Tensor | None
        ) -> Tensor:
            # What the objective leaves to chance is the same in all stages, what layers do is not.
            torch.manual_seed((self._seeds[number] + self.index + 1) % 2**63)
            part: Any = self.part
            stack = part.decoder if part.decoder is not None else part.encoder
            x = part.embed(input_ids) if self.index == 0 else received[: len(input_ids)]
            hidden: Tensor = stack(x, positions, context, token_type_ids=token_type_ids)
            if not self.is_last:
                raise _HandedOn(hidden)
            return hidden

        with _random(self._seeds[number], next(self.part.parameters()).device):
            try:
                loss = self.objective(_View(layers, self.part, *self._skeleton), self._batches[number])
            except _HandedOn as handed:
                return F.pad(handed.hidden, (0, 0, 0, self.max_tokens - len(handed.hidden)))
        self._losses.append(loss)
        total: Tensor = loss.loss_sum
        return total

    def sums(self) -> StepSums:
        """Of the step, where this is the last stage."""
        metrics: dict[str, float] = {}
        for loss in self._losses:
            for name, metric in loss.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + float(metric)
        return StepSums(
            sum(float(loss.loss_sum.detach()) for loss in self._losses),
            sum(float(loss.n_targets) for loss in self._losses),
            metrics,
        )  # fmt: skip


Layers = Callable[[Tensor, Tensor, AttentionContext, Tensor | None], Tensor]


class _View:
    """The model as the objective sees it: called once, and with the head's weights once it was.

    Args:
        layers: runs what is called.
        model: whose attributes the objective may ask for.
        skeleton: of the whole model, without numbers: for what another stage has.
    """

    def __init__(self, layers: Layers, model: nn.Module, skeleton: nn.Module) -> None:
        self._layers, self._model, self._skeleton, self._called = layers, model, skeleton, False

    def __call__(
        self, input_ids: Tensor, positions: Tensor, context: AttentionContext, *, token_type_ids: Tensor | None = None
    ) -> Tensor:
        if self._called:
            raise ParallelError(
                "the objective calls the model twice, and a pipeline carries hidden states once",
                "Set `pipeline: 1` for this objective",
            )
        self._called = True
        return self._layers(input_ids, positions, context, token_type_ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name) if hasattr(self._model, name) else getattr(self._skeleton, name)


def _call(objective: Objective, view: _View, batch: Any) -> None:
    try:
        objective(view, batch)
    except _HandedOn:
        return
    raise ParallelError("the objective does not call the model", "Set `pipeline: 1` for this objective")


def _without_numbers(model: nn.Module) -> nn.Module:
    """A copy that has shapes and no memory."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    groups = [
        module.group for module in model.modules() if isinstance(getattr(module, "group", None), dist.ProcessGroup)
    ]
    return copy.deepcopy(model, dict[int, Any](empty) | {id(group): group for group in groups})


@contextmanager
def _random(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed, and leave torch's generators as they were."""
    with torch.random.fork_rng([device] if device.type != "cpu" else []):
        torch.manual_seed(seed)
        yield
