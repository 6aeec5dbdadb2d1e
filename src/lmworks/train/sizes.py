"""How large a step is: rows and context length as pure functions of the step's number.

So a resumed run needs no state to know them, and the rows of a step follow from those before it. Knows no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field

from lmworks.core.config import Config
from lmworks.nn.batch import Batch

Positive = Annotated[int, Field(gt=0)]


class SizeStage(Config):
    """Sizes from some step on, until the next stage."""

    from_step: Positive
    """The first step, counted from 0, that has them."""
    batch_tokens: Positive | None = None
    """Tokens of one update; None keeps what was."""
    sequence_length: Positive | None = None
    """No document is seen further back than this, at most the run's `sequence_length`; None keeps what was."""


@dataclass(frozen=True)
class StepSize:
    """Sizes of one step."""

    batch_tokens: int
    sequence_length: int


def size_at(start: StepSize, stages: Sequence[SizeStage], step: int) -> StepSize:
    """The sizes of a step.

    Args:
        start: before the first stage.
        stages: by ascending `from_step`.
        step: counted from 0.
    """
    size = start
    for stage in stages:
        if stage.from_step <= step:
            size = StepSize(stage.batch_tokens or size.batch_tokens, stage.sequence_length or size.sequence_length)
    return size


def tokens_before(start: StepSize, stages: Sequence[SizeStage], step: int) -> int:
    """Tokens of all steps before `step`."""
    bounds = [0, *(stage.from_step for stage in stages if stage.from_step < step), step]
    spans = pairwise(bounds)
    return sum((end - begin) * size_at(start, stages, begin).batch_tokens for begin, end in spans)


def cut(batch: Batch, sequence_length: int) -> Batch:
    """The same tokens with every document cut into pieces of `sequence_length`, which do not see each other.

    Targets stay: the last token of a piece still predicts the first of the next. So a curriculum of lengths
    (arXiv:2108.06084) changes neither the order nor the amount of data.

    Args:
        batch: packed documents whose positions count from 0.
        sequence_length: of a piece, in tokens.
    """
    positions = batch.positions % sequence_length
    starts = (positions == 0).nonzero().squeeze(1)
    bounds = torch.cat([starts, starts.new_tensor([batch.num_tokens])])
    return replace(batch, positions=positions, cu_seqlens=bounds.to(batch.cu_seqlens.dtype))
