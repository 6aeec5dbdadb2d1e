"""How the model of a run is spread over its ranks, chosen once from the configuration; what does not fit is refused.

Knows the forms of parallelism by name, and no model class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from lmworks.core.errors import ParallelError
from lmworks.parallel.config import ParallelConfig, rows_per_rank
from lmworks.parallel.support import check_support
from lmworks.train.activation_checkpointing import layer_names
from lmworks.train.callbacks import TellsSteps
from lmworks.train.config import TrainConfig
from lmworks.train.distributed_step import ExpertStep, MeshStep
from lmworks.train.float8 import check_float8
from lmworks.train.pipelined_step import PipelineStep
from lmworks.train.ranks import MeshRanks, Ranks
from lmworks.train.step import Objective, Working, WorkingCopy


def arrange(
    model: nn.Module,
    objective: Objective,
    config: TrainConfig,
    ranks: Ranks,
    *,
    plan: Mapping[str, str] | None = None,
    units: Sequence[str] | None = None,
) -> Working:
    """The model as the run uses it; its weights may be divided in place.

    Args:
        model: float32, the same weights on every rank.
        objective: of the run, as the caller's rank computes it.
        config: the run.
        ranks: who shares it.
        plan: style of every module that `tensor` divides, by its name.
        units: names of the modules that are gathered together where weights are sharded; None: the layers.

    Raises:
        ConfigError: device or model cannot compute in float8.
        ParallelError: model, batch sizes and degrees do not fit; nothing was changed.
        TrainingError: a trainable weight is not float32.
    """
    precision = config.dtype
    if config.precision == "float8":
        check_float8(model, config.parallel)
    if not isinstance(ranks, MeshRanks):
        return WorkingCopy(model, precision)
    mesh, degrees = ranks.mesh, ranks.mesh.config
    require_rows(config, degrees)
    own = rows_per_rank(config.rows_per_step, degrees)
    rows = config.micro_batch_rows(own)
    check_support(model, degrees, plan=plan, num_microbatches=own // rows)
    if degrees.pipeline > 1:
        _refuse_with(degrees, "pipeline", ("context", "expert"), "stages hold whole layers and sequences")
        if isinstance(objective, TellsSteps):
            raise ParallelError("the objective counts what all layers do, and a pipeline's are apart", _NO_PIPELINE)
        if config.precision == "float16":
            raise ParallelError("precision float16 scales losses, which a pipeline adds up unscaled", _NO_PIPELINE)
        if any(stage.batch_tokens is not None for stage in config.size_schedule):
            raise ParallelError("a pipeline has as many micro-batches in every step", "Leave batch_tokens as it is")
        tokens = rows * config.sequence_length
        return PipelineStep(model, objective, mesh, precision, num_microbatches=own // rows, max_tokens=tokens)
    if degrees.expert > 1:
        _refuse_with(degrees, "expert", ("shard", "tensor"), "what is not an expert is replicated")
        return ExpertStep(model, mesh, precision)
    if degrees.gradient_compression != "none" and config.precision != "float32":
        raise ParallelError(
            f"gradient_compression {degrees.gradient_compression!r} is of whole float32 replicas, and precision is "
            f"{config.precision}",
            "Leave compression out, or set `precision: float32`",
        )
    return MeshStep(model, mesh, precision, plan, layer_names(model) if units is None else units)


def require_rows(config: TrainConfig, degrees: ParallelConfig) -> None:
    """Check that the rows of every step divide among the ranks and into micro-batches.

    Raises:
        ParallelError: they do not.
    """
    starts = (0, *(stage.from_step for stage in config.size_schedule))
    for batch_tokens in {config.size_at(step).batch_tokens for step in starts}:
        own = rows_per_rank(batch_tokens // config.sequence_length, degrees)
        if own % (rows := config.micro_batch_rows(own)):
            raise ParallelError(
                f"each of data x shard = {degrees.batch_degree} ranks has {own} rows of a batch of {batch_tokens} "
                f"tokens, which do not divide into micro-batches of {rows} rows",
                "Lower micro_batch_tokens, or leave it out",
            )


_NO_PIPELINE = "Set `pipeline: 1`"


def _refuse_with(degrees: ParallelConfig, form: str, others: Sequence[str], reason: str) -> None:
    for other in others:
        if (degree := getattr(degrees, other)) > 1:
            raise ParallelError(
                f"{form} {getattr(degrees, form)} and {other} {degree} do not go together: {reason}",
                f"Set `{form}: 1` or `{other}: 1`",
            )
