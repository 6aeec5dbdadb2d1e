"""A contestant: our training loop, as the `pretrain` stage runs it.

python our_train_worker.py THREADS
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from interleaved import answer_lines

from lmworks.models.accounting import flops_per_token
from lmworks.models.build import build_model
from lmworks.nn.batch import Batch
from lmworks.objectives.causal_lm import causal_lm
from lmworks.optim.optimizer import OptimizerConfig
from lmworks.train.callbacks import StepEnd
from lmworks.train.config import TrainConfig
from lmworks.train.metrics import measure_peak_flops
from lmworks.train.model_preset import ModelPreset
from lmworks.train.trainer import Trainer


class RandomRows:
    """Rows of random tokens, one document each."""

    def __init__(self, vocab: int, sequence: int) -> None:
        self.vocab, self.sequence = vocab, sequence

    def rows(self, start: int, count: int) -> Batch:
        """Rows of these numbers."""
        generator = torch.Generator().manual_seed(start)
        size = count * self.sequence
        tokens = torch.randint(0, self.vocab, (size + 1,), generator=generator)
        bounds = torch.arange(0, size + 1, self.sequence, dtype=torch.int32)
        positions = torch.arange(self.sequence).repeat(count)
        return Batch(tokens[:-1], positions, bounds, tokens[1:], torch.ones(size))


def answer(case: dict[str, Any]) -> dict[str, float]:
    """Train for one step that is not counted and `steps` that are."""
    forget_peak_memory()
    began = time.perf_counter()
    preset = ModelPreset(
        hidden_size=case["hidden"], num_hidden_layers=case["layers"], num_attention_heads=case["heads"],
        intermediate_size=case["intermediate"],
    )  # fmt: skip
    sequence = case["sequence"]
    model = preset.to_model_config(
        vocab_size=case["vocab"], sequence_length=sequence, bos_token_id=None, eos_token_ids=()
    )
    config = TrainConfig(
        steps=case["steps"] + 1, batch_tokens=case["batch"] * sequence, sequence_length=sequence,
        checkpoint_every=case["steps"] + 1, optimizer=OptimizerConfig(kind="adamw", lr=1e-4),
    )  # fmt: skip
    ends: list[float] = []

    def clock(_end: StepEnd) -> dict[str, float]:
        ends.append(time.perf_counter())
        return {}

    rows = RandomRows(case["vocab"], sequence)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(build_model(model, seed=0), causal_lm, rows, config, Path(folder), callbacks=[clock]).fit()
    return {
        "seconds": ends[-1] - ends[0],
        "tokens": config.batch_tokens * case["steps"],
        "peak_bytes": peak_memory(),
        "first_step_seconds": ends[0] - began,
        "flops_per_token": flops_per_token(model, sequence / 2).training,
        "peak_flops": measure_peak_flops(torch.bfloat16),
    }


def forget_peak_memory() -> None:
    """Begin anew what `peak_memory` tells (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> float:
    """Most bytes of this process in memory since `forget_peak_memory`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(float(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    answer_lines(answer)
