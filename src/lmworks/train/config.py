"""How long, on how much at a time, and how safely to train. Knows no model, data set or objective."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator

from lmworks.core.config import Config
from lmworks.optim.clipping import ClippingConfig
from lmworks.optim.optimizer import OptimizerConfig
from lmworks.optim.schedules import ScheduleConfig
from lmworks.parallel.config import ParallelConfig
from lmworks.train.activation_checkpointing import Recompute
from lmworks.train.checkpoint_config import CheckpointConfig
from lmworks.train.guard import GuardConfig
from lmworks.train.loss_scaling import LossScaleConfig
from lmworks.train.rank_watch import RankWatchConfig
from lmworks.train.sinks import TrackingConfig
from lmworks.train.sizes import SizeStage, StepSize, size_at, tokens_before

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
    precision: Literal["float32", "bfloat16", "float16", "float8"] = "bfloat16"
    """Type of the forward and backward pass. The weights that are updated stay float32. In float16 the loss is
    scaled, see `loss_scale`. In float8 the linear maps inside layers multiply 8-bit floats and all else is bfloat16:
    faster on a GPU that has such products, with wide layers."""
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
    guard: GuardConfig = GuardConfig()
    """What happens to a step whose loss or gradient is not finite or jumps."""
    loss_scale: LossScaleConfig = LossScaleConfig()
    """Of float16."""
    activation_checkpointing: Recompute = "none"
    """What the backward pass computes again instead of keeping it: `full`, all inside a layer; `selective`, all but
    attention and every second matrix product."""
    size_schedule: tuple[SizeStage, ...] = ()
    """Other batch sizes and context lengths from given steps on."""
    router_bias_update_speed: Annotated[float, Field(ge=0)] = 1e-3
    """How far a step moves the correction biases of a mixture of experts (DeepSeek-V3's γ)."""
    norms_every: Positive | None = None
    """Steps between records of the norms of gradients, updates and weights by layer; None records none."""
    tracking: TrackingConfig = TrackingConfig()
    """Where figures go besides `metrics.jsonl`."""
    clipping: Literal["norm", "per_parameter", "adaptive"] = "norm"
    """What `max_grad_norm` limits: the norm of all gradients together, of each parameter's, or the share of a unit's
    gradient in its weights (see `optim/clipping.py`)."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of an average of the weights that stays at each update; measurements and the finished model are of that
    average. None keeps none."""
    parallel: ParallelConfig = ParallelConfig()
    """How the processes that torchrun starts share the work; their number and arrangement change the weights by
    rounding alone."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """How checkpoints are written, which are kept besides the last, and where copies go."""
    watch: RankWatchConfig = RankWatchConfig()
    """How the ranks of a mesh are compared and watched while they train."""
    compile: bool = False
    """Have `torch.compile` fuse what is in each layer, attention apart; changes the weights by rounding alone. Takes
    tens of seconds at the first step; on CPU most of the package's own operations give way to fused ones."""

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

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        unit = self.micro_batch_tokens or self.sequence_length
        last = 0
        for stage in self.size_schedule:
            if not last < stage.from_step < self.steps:
                raise ValueError(
                    f"the size_schedule's from_step {stage.from_step} must follow {last} and come before the "
                    f"run's {self.steps} steps"
                )
            if (stage.batch_tokens or unit) % unit:
                raise ValueError(
                    f"batch_tokens {stage.batch_tokens} from step {stage.from_step} on is not a multiple of {unit}, "
                    "the tokens of one micro-batch or row"
                )
            if (stage.sequence_length or 1) > self.sequence_length:
                raise ValueError(
                    f"sequence_length {stage.sequence_length} from step {stage.from_step} on exceeds the run's "
                    f"{self.sequence_length}; begin with shorter ones instead"
                )
            last = stage.from_step
        return self

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.compile and self.activation_checkpointing == "selective":
            raise ValueError(
                "activation_checkpointing selective chooses among operations that `compile` fuses; "
                "take full or none, or leave `compile` out"
            )
        if self.compile and self.parallel != ParallelConfig():
            raise ValueError("`compile` works in one process; leave it or `parallel` out")
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations in the forward and backward pass."""
        dtype: torch.dtype = getattr(torch, "bfloat16" if self.precision == "float8" else self.precision)
        return dtype

    @property
    def rows_per_step(self) -> int:
        """Rows of one update, before any stage of `size_schedule`."""
        return self.batch_tokens // self.sequence_length

    @property
    def rows_per_micro_batch(self) -> int:
        """Rows of one forward and backward pass, before any stage of `size_schedule`."""
        return self.micro_batch_rows(self.rows_per_step)

    def micro_batch_rows(self, rows_per_step: int) -> int:
        """Rows of one forward and backward pass of an update of so many rows."""
        if self.micro_batch_tokens is not None:
            return self.micro_batch_tokens // self.sequence_length
        most = max(1, DEFAULT_MICRO_BATCH_TOKENS // self.sequence_length)
        return max(rows for rows in range(1, most + 1) if rows_per_step % rows == 0)

    def size_at(self, step: int) -> StepSize:
        """Tokens and context length of the step of this number, counted from 0."""
        return size_at(StepSize(self.batch_tokens, self.sequence_length), self.size_schedule, step)

    def tokens_before(self, step: int) -> int:
        """Tokens of all steps before the one of this number."""
        return tokens_before(StepSize(self.batch_tokens, self.sequence_length), self.size_schedule, step)

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.tokens_before(self.steps)

    def identity(self) -> dict[str, Any]:
        """The fields that decide what weights come out; a checkpoint serves only a run that shares them."""
        rewinds = "rewind" in (self.guard.nonfinite, self.guard.spike)  # to a checkpoint, so it matters where they are
        return self.model_dump(mode="json", exclude=_NOT_IDENTITY - ({"checkpoint_every"} if rewinds else set()))

    def gradient_clipping(self) -> ClippingConfig | None:
        """`clipping` and `max_grad_norm` together."""
        return None if self.max_grad_norm is None else ClippingConfig(kind=self.clipping, limit=self.max_grad_norm)


_NOT_IDENTITY = {
    "checkpoint_every",
    "keep_last",
    "eval_every",
    "norms_every",
    "tracking",
    "activation_checkpointing",
    "parallel",
    "micro_batch_tokens",
    "checkpoint",
    "watch",
    "compile",
}
