"""What is synthesized, of what and how. Knows no generator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lmworks.core.config import Config
from lmworks.core.sampling import SamplingParams
from lmworks.data.synthesis.eda import EdaConfig
from lmworks.data.synthesis.grade import GraderConfig
from lmworks.data.synthesis.methods import MethodName
from lmworks.data.synthesis.novelty import NoveltyConfig


class SynthesizeConfig(Config):
    """What is made, of what and how."""

    method: MethodName
    """What a new row is made of, and how."""
    inputs: tuple[Path, ...]
    """Files of rows: prompts with or without answers, or `text` for back-translation."""
    output: Path
    """Folder of the artifact, readable by tuning."""
    num_rows: Annotated[int | None, Field(ge=1)] = None
    """Stop at so many new rows; None makes all attempts."""
    attempts: Annotated[int | None, Field(ge=1)] = None
    """At most so many; None is one for each input row."""
    seed: int = 0
    """Of all chance: what is shown, how it is changed, what the generator samples."""
    round_size: Annotated[int, Field(ge=1)] = 32
    """Attempts made together. What one of them gives is an example to the next round's, not to its own."""
    concurrency: Annotated[int, Field(ge=1)] = 1
    """Calls at a time: 1 for an engine, which batches a round by itself, more for a generator over the network."""
    instruction_sampling: SamplingParams = SamplingParams(temperature=0.8, max_tokens=256)
    """Of new instructions."""
    response_sampling: SamplingParams = SamplingParams(temperature=0.7, max_tokens=1024)
    """`n` candidates of each answer; the best of those that all graders call good stays."""
    graders: tuple[GraderConfig, ...] = ()
    """All of which a response must satisfy."""
    novelty: NoveltyConfig | None = None
    """Of a new instruction beside the inputs' and the other new ones. None is ROUGE-L below 0.7, but for `eda`, whose
    rows are meant to be close, that not all words are the same."""
    eda: EdaConfig = EdaConfig()
    cut_off: Literal["drop", "keep"] = "drop"
    """Answers that end at the most tokens allowed: who learns from them learns to stop in the middle."""


INDECISIVE = ("output", "concurrency")
"""Fields that do not decide what the rows say."""
