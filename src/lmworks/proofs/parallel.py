"""`lmworks prove parallel`: every way to spread a step over processes gives the gradient and loss of one process.

Four processes on this machine, float32, documents of unequal length dealt out unequally, two micro-batches each, so
that any mean of means would show.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lmworks.core.errors import ParallelError
from lmworks.core.progress import say
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.parallel_plan import shard_units, tensor_plan
from lmworks.models.slots import AttentionConfig
from lmworks.models.transformer import Transformer
from lmworks.nn.batch import Batch, next_token_document, pack
from lmworks.objectives.causal_lm import causal_lm
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.consistency import require_equal_replicas
from lmworks.parallel.distribute import distribute
from lmworks.parallel.mesh import make_mesh
from lmworks.parallel.processes import run_processes
from lmworks.proofs.row import Row
from lmworks.proofs.tiny import LLAMA

RANKS = 4
BOUND = 1e-6
MICRO_BATCHES = 2
LENGTHS = (13, 41, 5, 28, 61, 9, 33, 17, 50, 8, 22, 37, 11, 30, 19, 45)

FORMS = {
    "DDP": ParallelConfig(data=4),
    "ZeRO-1": ParallelConfig(shard=4, zero_stage=1),
    "ZeRO-2": ParallelConfig(shard=4, zero_stage=2),
    "ZeRO-3": ParallelConfig(shard=4),
    "HSDP 2x2": ParallelConfig(data=2, shard=2),
    "TP": ParallelConfig(tensor=4, sequence_parallel=False),
    "TP+SP": ParallelConfig(tensor=4),
    "DP x TP+SP 2x2": ParallelConfig(data=2, tensor=2),
    "FSDP x TP+SP 2x2": ParallelConfig(shard=2, tensor=2),
}
"""Everything but `context`, `pipeline` and `expert`."""


@dataclass(frozen=True)
class Gap:
    """How far one form is from one process."""

    gradient: float
    """‖difference‖ / ‖gradient‖, over all parameters as one vector."""
    loss: float
    """Relative."""


def prove(seed: int = 0) -> list[Row]:
    """Measure every form."""
    say("measuring accumulation splits …")
    gaps = {"accumulation splits": accumulation_gap(seed)}
    say(f"measuring {len(FORMS)} forms on {RANKS} processes …")
    measured, found = run_processes(_measure, RANKS, seed)[0]
    rows = []
    for form, gap in (gaps | measured).items():
        rows.append(Row(f"causal LM, {form}: relative Δ gradient", gap.gradient, BOUND))
        rows.append(Row(f"causal LM, {form}: relative Δ loss", gap.loss, BOUND))
    rows.append(Row("parameter hashes: forms whose replicas differ after an update", found["differ"], 0))
    rows.append(Row("parameter hashes: a planted difference is found and its rank named", found["planted"], 1, ">="))
    return rows


def proof_config() -> ModelConfig:
    """Llama's shape with heads and vocabulary that divide by four."""
    assert LLAMA.decoder is not None, "Llama is a decoder"
    attention = AttentionConfig(num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    decoder = LLAMA.decoder.model_copy(update={"attention": attention, "num_hidden_layers": 2})
    return LLAMA.model_copy(update={"decoder": decoder, "vocab_size": 132})


def accumulation_gap(seed: int = 0) -> Gap:
    """One process, the documents in 1, 2, 3, ... micro-batches."""
    documents, reference = _documents(seed), one_process(seed)
    gaps = []
    for count in range(2, len(documents) + 1):
        model = build_model(proof_config(), seed=seed)
        sums = _step(model, [_batch(documents[i::count]) for i in range(count)])
        gaps.append(_gap(reference, ({n: _of(p.grad) for n, p in model.named_parameters()}, sums)))
    return Gap(max(g.gradient for g in gaps), max(g.loss for g in gaps))


Outcome = tuple[dict[str, Tensor], float]
"""Gradients by name and the loss, both per target."""


def one_process(seed: int) -> Outcome:
    """All documents in one batch."""
    model = build_model(proof_config(), seed=seed)
    loss = _step(model, [_batch(_documents(seed))])
    return {name: _of(p.grad) for name, p in model.named_parameters()}, loss


def distributed(form: ParallelConfig, seed: int) -> tuple[Outcome, Transformer]:
    """The same on the calling rank's part of a mesh; gradients are gathered whole."""
    mesh = make_mesh(form)
    config = proof_config()
    model = build_model(config, seed=seed)
    plan = tensor_plan(config, form.tensor) if form.tensor > 1 else None
    runner = distribute(model, mesh, plan=plan, units=shard_units(config))
    own = _documents(seed)[mesh.batch_rank :: mesh.config.batch_degree]
    batches = [_batch(own[i::MICRO_BATCHES]) for i in range(MICRO_BATCHES)]
    totals = torch.zeros(2, dtype=torch.float64)
    for index, batch in enumerate(batches):
        with runner.micro_batch(last=index + 1 == len(batches)):
            loss = runner(causal_lm, batch)
            torch.autograd.backward(loss.loss_sum)
        totals += torch.stack([loss.loss_sum.detach(), loss.n_targets])
    loss_sum, n_targets = map(float, mesh.sum_tokens(totals.unbind()))
    for parameter in model.parameters():
        _of(parameter.grad).div_(n_targets)
    gradients = {name: _whole(_of(p.grad)) for name, p in model.named_parameters()}
    return (gradients, loss_sum / n_targets), model


def _measure(seed: int) -> tuple[dict[str, Gap], dict[str, int]]:
    """On every rank: all forms in turn."""
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)  # it advises on speed
    reference = one_process(seed)
    gaps, found = {}, {"differ": 0, "planted": 0}
    for name, form in FORMS.items():
        outcome, model = distributed(form, seed)
        gaps[name] = _gap(reference, outcome)
        mesh = make_mesh(form)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * _of(parameter.grad))
        try:
            require_equal_replicas(model, mesh)
        except ParallelError:
            found["differ"] += 1
    model = build_model(proof_config(), seed=seed)
    mesh = make_mesh(FORMS["DDP"])
    if mesh.batch_rank == 2:
        with torch.no_grad():
            model.embed_tokens.weight[7, 3] += 1e-6
    try:
        require_equal_replicas(model, mesh)
    except ParallelError as error:
        found["planted"] = int("rank 2 " in str(error) and "embed_tokens.weight" in str(error))
    return gaps, found


def _step(model: Transformer, batches: list[Batch]) -> float:
    """Gradients per target are left in the model; the mean loss."""
    losses = []
    for batch in batches:
        loss = causal_lm(model, batch)
        torch.autograd.backward(loss.loss_sum)
        losses.append(loss)
    n_targets = sum(float(loss.n_targets) for loss in losses)
    for parameter in model.parameters():
        _of(parameter.grad).div_(n_targets)
    return sum(float(loss.loss_sum.detach()) for loss in losses) / n_targets


def _gap(reference: Outcome, outcome: Outcome) -> Gap:
    (expected, loss), (found, other_loss) = reference, outcome
    assert expected.keys() == found.keys(), "a form changes no parameter's name"
    difference = sum(float((found[n] - g).double().square().sum()) for n, g in expected.items())
    whole = sum(float(g.double().square().sum()) for g in expected.values())
    return Gap((difference / whole) ** 0.5, abs(other_loss - loss) / abs(loss))


def _documents(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    vocabulary = proof_config().vocab_size
    return [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in LENGTHS]


def _batch(documents: list[list[int]]) -> Batch:
    return pack([next_token_document(d) for d in documents])


def _of(gradient: Tensor | None) -> Tensor:
    assert gradient is not None, "every parameter has a part in the loss"
    return gradient


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
