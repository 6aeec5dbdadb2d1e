"""The program that torchrun starts on each host of `test_two_hosts.py`: some updates of a tiny model on shared rows."""

import json
import os
import sys
from pathlib import Path

import torch

from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.parallel_plan import shard_units
from lmworks.models.slots import AttentionConfig, MLPConfig
from lmworks.nn.batch import Batch
from lmworks.objectives.causal_lm import causal_lm
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.distribute import distribute
from lmworks.parallel.mesh import make_mesh, process_group

ROWS, LENGTH, VOCAB, STEPS = 4, 16, 37, 3
CONFIG = ModelConfig(
    vocab_size=VOCAB, hidden_size=16, max_position_embeddings=LENGTH,
    decoder=StackConfig(
        num_hidden_layers=2,
        attention=AttentionConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=8),
        mlp=MLPConfig(intermediate_size=32),
    ),
)  # fmt: skip


def packed(rows: torch.Tensor) -> Batch:
    """Rows as documents, each token with the next as its target."""
    weights = torch.ones(rows.shape)
    weights[:, -1] = 0
    bounds = torch.arange(0, rows.numel() + 1, LENGTH, dtype=torch.int32)
    positions = torch.arange(LENGTH).repeat(len(rows))
    return Batch(rows.flatten(), positions, bounds, rows.roll(-1, 1).flatten(), weights.flatten())


def losses(parallel: ParallelConfig) -> list[float]:
    """Mean loss of every update, which all ranks must agree on."""
    mesh = make_mesh(parallel)
    model = build_model(CONFIG, seed=0)
    runner = distribute(model, mesh, units=shard_units(CONFIG))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    own = ROWS // mesh.config.batch_degree
    found = []
    for step in range(STEPS):
        tokens = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(step))
        batch = packed(tokens[mesh.batch_rank * own : (mesh.batch_rank + 1) * own])
        with runner.micro_batch(last=True):
            loss = runner(causal_lm, batch)
            loss.loss_sum.backward()
        loss_sum, n_targets = mesh.sum_tokens([loss.loss_sum, loss.n_targets])
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= float(n_targets)
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss_sum / n_targets))
    return found


if __name__ == "__main__":
    with process_group():
        result = losses(ParallelConfig(**{sys.argv[1]: -1}))
        Path(sys.argv[2], f"rank-{os.environ['RANK']}.json").write_text(json.dumps(result))
