"""How long, on how much at a time, and how safely to train. Knows no model, data set or objective."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.optim.optimizer import OptimizerConfig
from lmworks.optim.schedules import ScheduleConfig

Positive = Annotated[int, Field(gt=0)]
DEFAULT_MICRO_BATCH_TOKENS = 4096


class TrainConfig(Config):
    """One training run. Batch sizes are in tokens; gradient accumulation follows from them."""

    steps: Positive
    """Updates of the weights."""
    batch_tokens: Positive = 16_384
    """Tokens of one update, over all micro-batches."""
    micro_batch_tokens: Positive | None = None
    """Tokens of one forward and backward pass; by default at most 4,096, which suits a CPU's cache. Larger
    ones suit a GPU and take more memory."""
    sequence_length: Positive = 512
    """Tokens of one row; no document is seen further back than this."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the forward and backward pass. The weights that are updated stay float32."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this global norm; None never scales."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints; the last step always writes one."""
    keep_last: Positive = 2
    """Checkpoints kept; older ones are removed."""
    eval_every: Positive | None = None
    """Steps between measurements on validation data; None measures once, at the end."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Fixes initial weights, order of documents and dropout."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        micro = self.micro_batch_tokens
        if micro is not None and self.batch_tokens % micro:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is not a multiple of micro_batch_tokens {micro}; "
                "accumulation takes whole micro-batches"
            )
        name, size = ("micro_batch_tokens", micro) if micro is not None else ("batch_tokens", self.batch_tokens)
        if size % self.sequence_length:
            raise ValueError(
                f"{name} {size} is not a multiple of sequence_length {self.sequence_length}; a batch holds whole rows"
            )
        if self.schedule.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.schedule.warmup_steps} exceed the run's {self.steps} steps")
        return self

    @property
    def rows_per_step(self) -> int:
        """Rows of one update."""
        return self.batch_tokens // self.sequence_length

    @property
    def rows_per_micro_batch(self) -> int:
        """Rows of one forward and backward pass."""
        if self.micro_batch_tokens is not None:
            return self.micro_batch_tokens // self.sequence_length
        most = max(1, DEFAULT_MICRO_BATCH_TOKENS // self.sequence_length)
        return max(rows for rows in range(1, most + 1) if self.rows_per_step % rows == 0)

    def identity(self) -> dict[str, Any]:
        """The fields that decide what weights come out; a checkpoint serves only a run that shares them."""
        return self.model_dump(mode="json", exclude={"checkpoint_every", "keep_last", "eval_every"})
