"""Can this model run so? Every reason against it, found before a process group, a weight or a batch exists.

Works on a model without numbers (made on the meta device) as on a real one. Each form's rules stand where the form
does; here they are asked, and the forms that do not go together are named. Knows modules by kind, no model class and
no objective: what an objective needs is found out by the form itself, on its first call and on all ranks alike.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lmworks.core.errors import ParallelError
from lmworks.nn.attention import Attention
from lmworks.nn.mla import MultiheadLatentAttention
from lmworks.nn.xl_attention import XLAttention
from lmworks.parallel.config import ParallelConfig
from lmworks.parallel.context import require_splittable
from lmworks.parallel.expert import require_experts
from lmworks.parallel.pipeline_schedules import require_schedule, stage_ranks
from lmworks.parallel.pipeline_stages import require_stages
from lmworks.parallel.tensor import require_divisible
from lmworks.parallel.ulysses import require_heads


def check_support(
    model: nn.Module,
    parallel: ParallelConfig,
    *,
    plan: Mapping[str, str] | None = None,
    num_microbatches: int | None = None,
) -> None:
    """Check that a model can be arranged as configured.

    Args:
        model: whole and undivided; may be on the meta device.
        parallel: resolved.
        plan: how `tensor` divides the model, by names of its modules; making it raises what the configuration of
            the model forbids.
        num_microbatches: of a step, where known: pipelines ask for a least number.

    Raises:
        ParallelError: it cannot, with the value, the rule and what to set instead.
    """
    _require_together(parallel)
    _require_sameness(model, parallel)
    if parallel.tensor > 1:
        if plan is None:
            raise ParallelError(
                f"tensor is {parallel.tensor}, and the model states no plan of how to divide it", "Set `tensor: 1`"
            )
        require_divisible(model, plan)
    if parallel.expert > 1:
        require_experts(model, parallel.expert)
    if parallel.context > 1:
        require_splittable(model, parallel.context_method)
        if parallel.context_method == "ulysses":
            for name, heads, kv_heads in _heads(model):
                _require_exchange(name, heads, kv_heads, parallel)
    if parallel.pipeline > 1:
        require_stages(model, len(stage_ranks(parallel.pipeline_schedule, parallel.pipeline)))
        if num_microbatches is not None:
            require_schedule(parallel.pipeline_schedule, parallel.pipeline, num_microbatches)


def _require_together(parallel: ParallelConfig) -> None:
    """Check that the forms go together, whatever the model."""
    if parallel.pipeline == 1:
        return
    for name, why in (
        ("shard", "stages keep their weights whole between micro-batches"),
        ("tensor", "stages hand on whole hidden states"),
    ):
        if (degree := getattr(parallel, name)) > 1:
            raise ParallelError(
                f"pipeline {parallel.pipeline} and {name} {degree} do not go together: {why}",
                f"Set `{name}: 1` and use `data`, `context` or `expert` beside `pipeline`, or set `pipeline: 1`",
            )
    if parallel.gradient_compression != "none":
        raise ParallelError(
            f"gradient_compression {parallel.gradient_compression!r} is of what replicas exchange while the backward "
            f"pass goes on, and a pipeline of {parallel.pipeline} exchanges once a step",
            "Leave compression out, or set `pipeline: 1`",
        )


def _require_sameness(model: nn.Module, parallel: ParallelConfig) -> None:
    """Check that nothing in a model depends on which tokens are computed together, or skips what others wait for."""
    waiting = [degree for degree in ("shard", "tensor", "context", "expert") if getattr(parallel, degree) > 1]
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm1d) and parallel.batch_degree * parallel.context > 1:
            raise ParallelError(
                f"{name} is a batch norm, whose statistics are of the tokens that one rank holds",
                'Choose the norm "layer" or "rms", or one process',
            )
        layerdrop: float | None = getattr(module, "layerdrop", None)
        if waiting and layerdrop:
            raise ParallelError(
                f"layerdrop {layerdrop} of {name} leaves layers out on some ranks for which others wait in "
                f"{' and '.join(waiting)}",
                "Set layerdrop to 0, or use `data` and `pipeline` alone",
            )


def _heads(model: nn.Module) -> list[tuple[str, int, int]]:
    """Name, heads and heads of keys and values of every attention."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            query, key = module.q_proj.out_features, module.k_proj.out_features
            found.append((name, query // module.head_dim, key // module.head_dim))
        elif isinstance(module, MultiheadLatentAttention):
            heads = module.query_size // (module.nope + module.rope)
            found.append((name, heads, heads))
        elif isinstance(module, XLAttention):
            heads = module.q_proj.out_features // module.head_dim
            found.append((name, heads, heads))
    return found


def _require_exchange(name: str, heads: int, kv_heads: int, parallel: ParallelConfig) -> None:
    """Check that the heads which `tensor` leaves a rank divide among those of `context`."""
    try:
        require_heads(heads // parallel.tensor, kv_heads // parallel.tensor, parallel.context)
    except ParallelError as error:
        raise ParallelError(f"{name}: {error.problem}", error.remedy) from None
