"""Runs on several processes, as functions that a new process can import."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from train_case import Documents, tiny_config

from lmworks.core.errors import LMWorksError, TrainingError
from lmworks.data.tokens.packing import PackedRows
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.parallel_plan import tensor_plan
from lmworks.models.slots import AttentionConfig, MLPConfig, MoEConfig
from lmworks.nn.attention_context import PackedContext
from lmworks.objectives.causal_lm import causal_lm
from lmworks.train.callbacks import StepEnd
from lmworks.train.faults import FaultInjector, nan_loss
from lmworks.train.moe import balanced
from lmworks.train.trainer import Trainer

Weights = dict[str, torch.Tensor]


def model_config(experts: bool = False) -> ModelConfig:
    """Divides by two in every way."""
    mlp = MoEConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16) if experts else None
    return ModelConfig(
        vocab_size=64,
        hidden_size=16,
        max_position_embeddings=64,
        decoder=StackConfig(
            num_hidden_layers=2,
            attention=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8),
            mlp=mlp or MLPConfig(intermediate_size=32),
        ),
    )


def trainer(
    folder: Path,
    *,
    experts: bool = False,
    faults: tuple[int, ...] = (),
    seed: int = 0,
    callbacks: Any = (),
    **changes: Any,
) -> Trainer:
    """On one process or on each of several."""
    settings = {"optimizer": {"kind": "adamw"}, "steps": 4, "micro_batch_tokens": 32, "max_grad_norm": 0.5} | changes
    config, model = tiny_config(**settings), model_config(experts)
    rows: Any = PackedRows(Documents(), config.sequence_length, config.seed)
    objective: Any = balanced(causal_lm, model, config.router_bias_update_speed)
    if faults:
        rows = objective = FaultInjector(rows, objective, dict.fromkeys(faults, nan_loss))
    degree = config.parallel.tensor
    return Trainer(
        build_model(model, seed=seed), objective, rows, config, folder, callbacks=callbacks,
        tensor_plan=tensor_plan(model, degree) if degree > 1 else None,
    )  # fmt: skip


def whole(made: Trainer) -> Weights:
    """The weights of all ranks together, under the names of one process."""
    made.working.call(lambda _: None)  # stages of a pipeline send each other theirs
    return {
        n: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for n, p in made.model.named_parameters()
    }


def mean_weight(end: StepEnd) -> dict[str, float]:
    """A figure that needs a forward pass."""
    ids = torch.arange(5)
    hidden = end.model(ids, ids, PackedContext(torch.tensor([0, 5], dtype=torch.int32)))
    return {"figure": float(hidden.detach().float().abs().mean())}


def train_forms(folder: Path, forms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every form in turn: weights, and what went wrong."""
    found: dict[str, Any] = {}
    for name, changes in forms.items():
        try:
            made = trainer(folder / name, **changes)
            result = made.fit()
            found[name] = whole(made), result.metrics
        except LMWorksError as error:
            found[name] = {}, {"error": str(error)}
    return found


def stop_second_rank(end: StepEnd) -> dict[str, float]:
    """One of two ranks is asked to stop after step 3."""
    if end.step == 3 and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return {}


def resume_and_faults(folder: Path, faulty_row: int) -> dict[str, Any]:
    """On every rank of two: a run that was stopped and one that was not; then bad rows of the second rank."""
    found: dict[str, Any] = {}
    sharded = {"parallel": {"shard": 2}, "precision": "bfloat16", "ema_decay": 0.5, "optimizer": {"kind": "muon"}}
    straight = trainer(folder / "straight", **sharded)
    straight.fit()
    try:
        trainer(folder / "cut", callbacks=(stop_second_rank,), **sharded).fit()
    except SystemExit as stopped:
        found["exit"] = stopped.code
    resumed = trainer(folder / "cut", seed=7, callbacks=(mean_weight,), eval_every=4, **sharded)
    found["figure"] = resumed.fit().metrics["figure"]
    found["straight"], found["resumed"] = whole(straight), whole(resumed)
    for action in ("skip", "halt"):
        bad = trainer(folder / action, faults=(faulty_row,), parallel={"data": 2}, guard={"nonfinite": action})
        try:
            found[action] = bad.fit().metrics
        except TrainingError as error:
            found[action] = str(error)
        found[f"{action} weights"] = whole(bad)
    return found


def misfits(folder: Path) -> list[str]:
    """What is refused before anything is done."""
    messages = []
    for changes in (
        {},
        {"parallel": {"data": 3}},
        {"parallel": {"data": 2}, "batch_tokens": 96},
        {"parallel": {"data": 2}, "micro_batch_tokens": 64, "batch_tokens": 64},
        {"parallel": {"pipeline": 2}, "precision": "float16"},
        {"parallel": {"data": 2, "gradient_compression": "bfloat16"}, "precision": "bfloat16"},
        {"parallel": {"shard": 2}, "optimizer": {"kind": "adamw", "state_bits": 8}},
    ):
        try:
            trainer(folder, **changes)
        except LMWorksError as error:
            messages.append(str(error))
    return messages
