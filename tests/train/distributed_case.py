"""Runs on several processes, as functions that a new process can import."""

from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from train_case import Documents, tiny_config

from lmworks.core.errors import LMWorksError
from lmworks.data.tokens.packing import PackedRows
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.parallel_plan import tensor_plan
from lmworks.models.slots import AttentionConfig, MLPConfig, MoEConfig
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
    from lmworks.nn.attention_context import PackedContext

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
