"""What is kept of a run's checkpoints, how they are written, and how long a stop waits for them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lmworks.core.config import Config


class KeepBest(Config):
    """Checkpoints that are kept for what was measured at their step."""

    metric: str = "validation_bits_per_byte"
    """Name in the run's records. A checkpoint of a step that did not measure it is no candidate."""
    mode: Literal["min", "max"] = "min"
    """Whether less is better, or more."""
    count: Annotated[int, Field(gt=0)] = 1
    """How many of the best are kept."""


class CheckpointConfig(Config):
    """How checkpoints are written."""

    asynchronous: bool = True
    """Written in the background from a copy in host memory, while the next steps are made."""
    keep_best: KeepBest | None = None
    """Kept besides the newest; None keeps the newest alone."""
    upload: str | None = None
    """Where each is copied to once it is published: a URL that fsspec knows, e.g. `s3://bucket/run`. A run that finds
    no checkpoint in its folder goes on from there."""
    stop_deadline_seconds: Annotated[float, Field(gt=0)] = 25.0
    """After SIGTERM: how long to wait for checkpoints, the one being written and the last. The default leaves a few of
    the 30 seconds that Kubernetes gives."""
    keep_finished: bool = False
    """Keep the checkpoints of a run that is finished: `lmworks replay` begins with the nearest one."""
