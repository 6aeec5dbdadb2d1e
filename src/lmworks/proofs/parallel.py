"""`lmworks prove parallel`: every way to spread a step over processes gives the gradient and loss of one process.

Four processes on this machine, float32, documents of unequal length dealt out unequally, several micro-batches each,
so that any mean of means would show. The processes are started once. What makes no sense is refused by name before it
starts, and a row says so. By default every form is measured for causal language modeling and some of them, in turn,
for each other objective; the long form measures all for all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from lmworks.core.errors import ParallelError
from lmworks.core.progress import say
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.consistency import require_equal_replicas
from lmworks.parallel.mesh import Mesh, make_mesh
from lmworks.parallel.processes import run_processes
from lmworks.proofs.parallel_forms import (
    COVER,
    FORMS,
    RANKS,
    Form,
    Gap,
    Meshes,
    Outcome,
    distributed,
    few_meshes,
    one_process,
)  # fmt: skip
from lmworks.proofs.parallel_objectives import BALANCED, CASES, UNITS, Case, net
from lmworks.proofs.row import Row

BOUND = 1e-6
SPLITS = "accumulation splits"
PLAIN = "causal LM"
BALANCED_FORMS = ("DDP", "EP", "TP+SP", "ring", "pipeline 1f1b, 8")
TIMEOUT = 3000.0
"""Seconds for all forms on a slow machine; what hangs is ended then."""


@dataclass(frozen=True)
class ParallelRow(Row):
    """One objective under one form: the larger of both gaps, or a refusal."""

    objective: str = ""
    form: str = ""
    gradient: float | None = None
    """‖difference‖ / ‖gradient‖; None where the form is refused."""
    loss: float | None = None
    """Relative difference."""


Found = Gap | str
"""A gap, or the words of a refusal."""


def prove(seed: int = 0, long: bool = False) -> list[Row]:
    """Measure.

    Args:
        seed: of models and documents.
        long: every objective under every form.
    """
    chosen = list(pairs(long))
    say("measuring accumulation splits …")
    rows: list[Row] = [_row(name, SPLITS, CASES[name], None, accumulation_gap(name, seed)) for name in CASES]
    say(f"measuring {len(chosen)} pairs of an objective and a form on {RANKS} processes …")
    measured, differing = dict[int, Found](), 0
    for numbers in few_meshes(chosen, FORMS):
        some = [chosen[number] for number in numbers]
        found, unequal = run_processes(_measure, RANKS, seed, some, timeout=TIMEOUT)[0]
        measured.update(zip(numbers, found, strict=True))
        differing += unequal
    for number, (objective, form) in enumerate(chosen):
        rows.append(_row(objective, form, _case(objective), FORMS[form], measured[number]))
    rows.append(Row("parameter hashes: forms whose replicas differ after an update", differing, 0))
    planted = run_processes(_planted, RANKS, seed)[0]
    rows.append(Row("parameter hashes: a planted difference is found and its rank named", planted, 1, ">="))
    return rows


def pairs(long: bool) -> Iterator[tuple[str, str]]:
    """Objectives and forms that are measured."""
    for index, objective in enumerate(CASES):
        forms = FORMS if long or objective == PLAIN else COVER[index % len(COVER)]
        yield from ((objective, form) for form in forms)
    yield from (("balanced experts", form) for form in BALANCED_FORMS)


def accumulation_gap(objective: str = PLAIN, seed: int = 0) -> Gap:
    """One process, the documents in 2, 5, and as many micro-batches as there are units: the worst."""
    reference = one_process(CASES[objective], seed, 2)
    gaps = [reference.gap(one_process(CASES[objective], seed, 2, splits=count)) for count in (2, 5, UNITS)]
    return Gap(max(g.gradient for g in gaps), max(g.loss for g in gaps))


def _case(objective: str) -> Case:
    return CASES.get(objective, BALANCED)


def _row(objective: str, form: str, case: Case, shape: Form | None, found: Found) -> ParallelRow:
    """A gap holds within the bound, where no refusal is announced; a refusal where one is, by its words."""
    label = f"{objective}, {form}"
    announced = [] if shape is None else [w for name, w in case.refused.items() if shape.degrees[name] > 1]
    if isinstance(found, str):
        right = any(words in found for words in announced)
        return ParallelRow(f"{label}: refused", float(right), 1, ">=", f"refused: {found}", objective, form)
    worst = max(found.gradient, found.loss) if not announced else float("inf")
    note = "a refusal is missing" if announced else ""
    return ParallelRow(label, worst, BOUND, "<=", note, objective, form, found.gradient, found.loss)


def _measure(seed: int, chosen: list[tuple[str, str]]) -> tuple[list[Found], int]:
    """On every rank: all pairs in turn. One rank alone knows what one process gives."""
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)  # it advises on speed
    references: dict[tuple[str, int, bool, int], Outcome] = {}
    meshes, found, differing = Meshes(), list[Found](), 0
    for objective, name in chosen:
        case, form = _case(objective), FORMS[name]
        if case is BALANCED:
            form = Form(form.config, form.micro_batches, experts=True)
        try:
            outcome, model, mesh = distributed(case, form, seed, meshes)
        except ParallelError as error:
            found.append(error.problem)
            continue
        if objective == PLAIN and form.config.pipeline == form.config.expert == 1:
            differing += not _equal_after_update(model, mesh)
        if dist.get_rank():
            found.append(Gap(0.0, 0.0))
            continue
        splits = form.micro_batches * form.config.batch_degree if case is BALANCED else 1
        key = (objective, form.layers, form.experts, splits)
        if key not in references:
            references[key] = one_process(case, seed, form.layers, experts=form.experts, splits=splits)
        found.append(references[key].gap(outcome))
    return found, differing


@torch.no_grad()
def _equal_after_update(model: nn.Module, mesh: Mesh) -> bool:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.sub_(1e-4 * parameter.grad)
    try:
        require_equal_replicas(model, mesh)
    except ParallelError:
        return False
    return True


@torch.no_grad()
def _planted(seed: int) -> int:
    """Whether one changed weight of one rank is found, and the rank named."""
    model, _, _ = CASES[PLAIN].build(2, seed, net(experts=False), 1)
    mesh = make_mesh(ParallelConfig(data=RANKS))
    if mesh.batch_rank == 2:
        model.get_parameter("embed_tokens.weight")[7, 3] += 1e-6
    try:
        require_equal_replicas(model, mesh)
    except ParallelError as error:
        return int("rank 2 " in str(error) and "embed_tokens.weight" in str(error))
    return 0
