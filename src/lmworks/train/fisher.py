"""The stage `fisher`: how much a model's old data cares about each of its weights, for elastic weight consolidation.

Knows no text: the data are tokens, as in pretraining.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.errors import ArtifactError, CheckpointError
from lmworks.core.lineage import Manifest, clock, content_hash, verify, write_artifact
from lmworks.core.progress import say
from lmworks.data.tokens.packing import PackedRows
from lmworks.data.tokens.token_store import TokenStore
from lmworks.models.hub import load_pretrained
from lmworks.objectives.arrange import ArrangedRows
from lmworks.tokenization import load_tokenizer
from lmworks.train.anchor import diagonal_fisher
from lmworks.train.held_out_text import require_tokenizer
from lmworks.train.objective_choice import CausalLMObjective, ObjectiveChoice
from lmworks.train.objective_wiring import wire

FILE = "fisher.safetensors"


class FisherConfig(Config):
    """Of which model on which data."""

    model: Path
    """Model folder, with its tokenizer."""
    tokens: Path
    """Tokens artifact of the old data; its `train` split is read."""
    output: Path
    """Folder to write."""
    objective: ObjectiveChoice = CausalLMObjective()
    """What the model was trained to do."""
    rows: Annotated[int, Field(gt=0)] = 256
    """Rows of the old data to take; more make a smoother estimate."""
    sequence_length: Annotated[int, Field(gt=0)] = 512
    """Tokens of one row."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Chooses the rows."""


def fisher(config: FisherConfig) -> Manifest:
    """Estimate the diagonal Fisher information and write it by parameter name.

    Raises:
        ArtifactError: the tokens are missing or damaged.
        TokenizerError: the tokens were made with another tokenizer than the model's.
        ConfigError: the objective does not fit the model.
    """
    started = clock()
    tokenizer = load_tokenizer(config.model)
    require_tokenizer(config.tokens, tokenizer, config.model)
    model = load_pretrained(config.model, dtype=torch.float32)
    wired = wire(config.objective, model.config, tokenizer, config.sequence_length)
    packed = PackedRows(TokenStore(config.tokens / "train"), config.sequence_length, config.seed)
    rows = packed if wired.arrangement is None else ArrangedRows(packed, wired.arrangement, config.seed)
    estimate = diagonal_fisher(model, wired.loss, lambda number: rows.rows(number, 1), config.rows)
    with write_artifact(
        config.output,
        "fisher",
        config=config.to_dict(),
        parents={"model": config.model, "tokens": config.tokens},
        code_version=code_version(__name__),
        started=started,
    ) as writer:
        save_file(estimate, writer.folder / FILE)
        mean = sum(float(t.sum()) for t in estimate.values()) / sum(t.numel() for t in estimate.values())
        writer.metrics.update({"rows": config.rows, "mean": mean})
    say(f"Fisher information of {len(estimate)} parameters over {config.rows} rows, {mean:.3g} on average")
    assert writer.manifest is not None
    return writer.manifest


def load_fisher(folder: Path, model: Path) -> dict[str, Tensor]:
    """What `fisher` wrote, if it is of this model.

    Raises:
        ArtifactError: nothing is there, or it is damaged.
        CheckpointError: it was estimated on another model.
    """
    manifest = verify(folder)
    if manifest.kind != "fisher":
        raise ArtifactError(
            f"{folder} holds a {manifest.kind} and no Fisher information", "Make it with `lmworks fisher`"
        )
    of = next(parent.content_hash for parent in manifest.parents if parent.role == "model")
    if of != content_hash(model):
        raise CheckpointError(
            f"the Fisher information in {folder} was estimated on another model than {model}",
            "Estimate it on the model that this run begins with",
        )
    return load_file(folder / FILE)
