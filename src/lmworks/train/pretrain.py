"""The pretrain stage: from token shards and a tokenizer to a model folder. Knows no text.

From random weights or from a model folder, on one source or a mixture, by any objective. The run's checkpoints live
beside the output, in `<output>.checkpoints`, until the model is published.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.errors import ConfigError, DataError, MissingExtraError
from lmworks.core.lineage import Manifest, clock, content_hash, write_artifact
from lmworks.core.progress import say
from lmworks.data.tokens.best_fit import BestFitRows
from lmworks.data.tokens.mixing import MixtureConfig, Name
from lmworks.data.tokens.token_store import TokenStore
from lmworks.models.accounting import flops_per_token
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.hub import load_pretrained, read_config, save_pretrained
from lmworks.models.parallel_plan import tensor_plan
from lmworks.models.transformer import Transformer
from lmworks.nn.quantized import QuantizedLinear
from lmworks.objectives.arrange import ArrangedRows
from lmworks.optim.mup import scale_initial_weights
from lmworks.parallel.config import ParallelConfig
from lmworks.tokenization import Tokenizer, check_compatible, load_tokenizer
from lmworks.train.anchor import AnchorConfig, AnchoredObjective
from lmworks.train.callbacks import Callback, every
from lmworks.train.config import TrainConfig
from lmworks.train.dry_run import available_memory, require_fit
from lmworks.train.export import export_checkpoint
from lmworks.train.fisher import load_fisher
from lmworks.train.held_out_text import HeldOutText, bytes_per_target, measure_loss, measure_texts, require_tokenizer
from lmworks.train.model_preset import ModelPreset
from lmworks.train.moe import balanced
from lmworks.train.objective_choice import SHAPES, CausalLMObjective, ObjectiveChoice, check_shape, head_of
from lmworks.train.objective_wiring import WiredObjective, longest_document, wire
from lmworks.train.plot import plot_run
from lmworks.train.ranks import OneProcess, world_size
from lmworks.train.saved_checkpoint import Checkpoint
from lmworks.train.sources import Shares, Source, mixed_rows, open_sources, shares_of, told
from lmworks.train.trainer import Trainer, TrainResult

CUT = ("causal_lm", "masked_lm")
"""Objectives whose documents may be cut into shorter pieces after they were arranged."""


class PretrainConfig(Config):
    """Train a model on tokenized documents, from random weights or from another model's."""

    model: ModelPreset = ModelPreset()
    """Family and sizes; the vocabulary is the tokenizer's."""
    tokens: Path | MixtureConfig
    """Tokens artifact with a `train` and a `validation` split, or several with their shares."""
    tokenizer: Path
    """Tokenizer folder that made the tokens."""
    output: Path
    """Model folder to write."""
    train: TrainConfig
    """How long and on how much at a time."""
    validation_documents: Annotated[int, Field(gt=0)] = 200
    """At most this many validation documents of each source are measured during and after training."""
    profile: bool = False
    """Trace a few early steps, and write the trace and a report of the bottlenecks to `<output>.profile`."""
    objective: ObjectiveChoice = CausalLMObjective()
    """What the model learns to do, with its settings, such as `{kind: masked_lm, whole_word: true}`."""
    init_from: Path | None = None
    """Model folder to go on from, instead of `model` and random weights (continual pretraining)."""
    anchor: AnchorConfig | None = None
    """Hold the weights near those of `init_from`."""
    also_validate: dict[Name, Path] = {}
    """Further tokens artifacts whose validation split is measured, by name: what the model should not forget."""
    packing: Literal["concatenate", "best-fit"] = "concatenate"
    """How documents fill rows: `concatenate` lays them end to end and cuts them where a row ends; `best-fit` fits whole
    ones together, so that only those longer than a row are cut, and rows end a little earlier."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.init_from is not None and self.model != ModelPreset():
            raise ValueError("`init_from` names a whole model; leave `model` out")
        if self.anchor is not None and self.init_from is None:
            raise ValueError("`anchor` holds a run at the weights of `init_from`; give it")
        if self.anchor is not None and self.train.precision == "float16":
            raise ValueError(
                "`anchor` works in float32, bfloat16 and float8; float16 scales the loss, and it must not be scaled"
            )
        if self.anchor is not None and self.train.parallel != ParallelConfig():
            raise ValueError("`anchor` needs all weights in one process; leave `train.parallel` out")
        if self.also_validate and self.objective.kind != "causal_lm":
            raise ValueError(f"`also_validate` measures bits per byte, which {self.objective.kind} models do not give")
        if self.packing == "best-fit" and self.objective.kind == "seq2seq":
            raise ValueError("seq2seq has rows of whole documents of its own; leave `packing` out")
        if self.objective.kind not in CUT and any(stage.sequence_length for stage in self.train.size_schedule):
            raise ValueError(
                f"size_schedule's sequence_length cuts documents, and those of {self.objective.kind} must stay whole"
            )
        return self


@dataclass(frozen=True)
class PretrainRun:
    """Everything that a run is made of, before its first step."""

    trainer: Trainer
    model: Transformer
    wired: WiredObjective
    tokenizer: Tokenizer
    sources: list[Source]
    shares: Shares
    """What it takes of each source; see `shares_of`."""

    @property
    def parameters(self) -> int:
        """Of the model that is kept."""
        return sum(p.numel() for p in self.model.parameters())


def run_folder_of(output: Path) -> Path:
    """Where a run that writes `output` keeps its checkpoints, its records and its configuration."""
    return output.with_name(output.name + ".checkpoints")


def assemble(config: PretrainConfig, run_folder: Path, version: str = "") -> PretrainRun:
    """Read what a run needs and build its trainer; nothing is written.

    Args:
        config: the run.
        run_folder: of the trainer.
        version: of the code, for checkpoints.

    Raises:
        ArtifactError: the tokens are missing or damaged.
        TokenizerError: the tokens were made with another tokenizer, or `init_from` has another vocabulary.
        ConfigError: the objective does not fit the model, the tokenizer or the lengths.
        DataError: there is nothing to train on or to validate with, or a source ends early.
        ParallelError: model, batch and mesh do not fit.
        ModelTooLargeError: a step needs more memory than there is.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    sources = open_sources(config.tokens, tokenizer, config.tokenizer)
    model_config = model_config_of(config, tokenizer)
    require_fit(model_config, config.train, world_size(), available_memory())
    model = _model(config, model_config)
    wired = wire(config.objective, model_config, tokenizer, config.train.sequence_length)
    module = wired.module(model, config.train.seed)
    objective = balanced(wired.loss, model_config, config.train.router_bias_update_speed)
    if config.anchor is not None and config.init_from is not None:
        known = None if config.anchor.fisher is None else load_fisher(config.anchor.fisher, config.init_from)
        objective = AnchoredObjective(objective, module, config.anchor.strength, known)
    kind = wired.rows if config.packing == "concatenate" else BestFitRows
    mixture = mixed_rows(config.tokens, sources, config.train, kind)
    rows = mixture if wired.arrangement is None else ArrangedRows(mixture, wired.arrangement, config.train.seed)
    shares = shares_of(mixture, sources, config.train)
    trainer = Trainer(
        module,
        objective,
        rows,
        config.train,
        run_folder,
        code_version=version,
        callbacks=[every(config.train.eval_every, _validation(config, wired, model, sources, tokenizer))],
        identity=_identity(config, model_config, tokenizer),
        flops_per_token=_flops_per_token(config, model_config, shares, sources),
        bytes_per_target=_bytes_per_target(wired, shares, sources, tokenizer),
        profile=config.output.with_name(config.output.name + ".profile") if config.profile else None,
        tensor_plan=_tensor_plan(config, model_config) if module is model else None,
    )
    return PretrainRun(trainer, model, wired, tokenizer, sources, shares)


def pretrain(config: PretrainConfig) -> Manifest:
    """Train, and write the model folder with its tokenizer, `metrics.jsonl` and `loss.png`.

    Started again after a stop or a crash, it goes on from the newest intact checkpoint.

    Raises:
        ArtifactError, TokenizerError, ConfigError, DataError: as `assemble` does, before anything is written.
        TrainingError: the guard halts the run, or the checkpoints there are of another run.
    """
    started = clock()
    version = code_version(__name__)
    run_folder = run_folder_of(config.output)
    run = assemble(config, run_folder, version)
    trainer = run.trainer
    said = f"{run.parameters / 1e6:.2f}M parameters, {config.train.total_tokens:,} training tokens"
    trainer.log.say(said + told(run.shares))
    trainer.log.settings = config.to_dict()
    parameters, result = run.parameters, trainer.fit()
    # Of several ranks none has all weights; their last checkpoint has.
    last = None if isinstance(trainer.ranks, OneProcess) else trainer.checkpoints.newest()

    def publish() -> Manifest:
        whole = run.model if last is None else trained_model(config, run.model.config, run.wired, last)
        with write_artifact(
            config.output,
            "model",
            config=config.to_dict(),
            parents=parents_of(config),
            code_version=version,
            started=started,
        ) as writer:
            save_pretrained(whole, writer.folder)
            run.tokenizer.save(writer.folder)
            shutil.copyfile(result.metrics_file, writer.folder / "metrics.jsonl")
            if (events := run_folder / "events.jsonl").exists():
                shutil.copyfile(events, writer.folder / "events.jsonl")
            try:
                plot_run(result.metrics_file, writer.folder / "loss.png")
            except MissingExtraError as error:
                say(f"no loss.png: {error}")
            writer.metrics.update(_summary(result, parameters))
            shares = run.shares
            if len(shares) > 1:
                writer.metrics.update({f"share.{name}": figures["share"] for name, figures in shares.items()})
            writer.metrics.update({f"epochs.{name}": figures["epochs"] for name, figures in shares.items()})
        if not config.train.checkpoint.keep_finished:
            shutil.rmtree(run_folder)
        assert writer.manifest is not None
        return writer.manifest

    return trainer.ranks.from_first(publish)


def _tensor_plan(config: PretrainConfig, model: ModelConfig) -> dict[str, str] | None:
    """How the model is divided, where it is to be."""
    ranks = config.train.parallel.tensor
    return tensor_plan(model, ranks) if ranks > 1 else None


def trained_model(
    config: PretrainConfig, model_config: ModelConfig, wired: WiredObjective, checkpoint: Checkpoint
) -> Transformer:
    """The model of a checkpoint in one process, however many ranks wrote it.

    Raises:
        CheckpointError: it is of another model, or cannot be read.
    """
    model = _model(config, model_config)
    export_checkpoint(checkpoint, wired.module(model, config.train.seed))
    return model


def model_config_of(config: PretrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """What the model is, before any of it is read or built.

    Raises:
        ConfigError: it is of another kind than the objective's.
        TokenizerError: it has another vocabulary.
    """
    if config.init_from is not None:
        model = read_config(config.init_from)
        check_compatible(tokenizer, model.vocab_size)
        return model
    objective, length = config.objective, config.train.sequence_length
    check_shape(objective, config.model.shape, config.model.preset)
    return config.model.to_model_config(
        vocab_size=tokenizer.vocab_size,
        sequence_length=max(longest_document(objective, shape, length) for shape in SHAPES[objective.kind]),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=tokenizer.eos_token_ids,
        head=head_of(objective),
    )


def _model(config: PretrainConfig, model_config: ModelConfig) -> Transformer:
    """The model before training.

    Raises:
        ConfigError: it is quantized.
    """
    if config.init_from is not None:
        model = load_pretrained(config.init_from, dtype=torch.float32)
        if any(isinstance(part, QuantizedLinear) for part in model.modules()):
            raise ConfigError(f"the weights of {config.init_from} are quantized", "Give the model before that")
        return model
    model = build_model(model_config, seed=config.train.seed)
    scale_initial_weights(model, config.train.optimizer)
    return model


def _validation(
    config: PretrainConfig, wired: WiredObjective, model: Transformer, sources: list[Source], tokenizer: Tokenizer
) -> Callback:
    """Bits per byte of the held-out text of every source, or the objective's loss on it.

    Raises:
        DataError: a source holds no text to validate with.
    """
    length, at_most = config.train.sequence_length, config.validation_documents
    if config.objective.kind != "causal_lm":
        held_out = []
        for source in sources:
            if not len(source.validation):
                raise DataError(f"{source.validation.path} holds no documents", "Keep some documents for validation")
            packed = wired.rows(source.validation, length, config.train.seed)
            count = math.ceil(packed.rows_per_epoch * min(1.0, at_most / len(source.validation)))
            arranged = (
                packed if wired.arrangement is None else ArrangedRows(packed, wired.arrangement, config.train.seed)
            )
            held_out.append((arranged, count))
        return measure_loss(wired.loss, held_out)
    stores = {source.name: source.validation for source in sources}
    for name, path in config.also_validate.items():
        require_tokenizer(path, tokenizer, config.tokenizer)
        stores[name] = TokenStore(path / "validation")
    texts = {name: HeldOutText.of(store, tokenizer, at_most) for name, store in stores.items()}
    started_with = {} if config.init_from is None else texts
    before = {name: text.bits_per_byte(model, length) for name, text in started_with.items()}
    return measure_texts(texts, length, before)


def _identity(config: PretrainConfig, model: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a checkpoint must share with the run; folders by what is in them, not by where they are."""
    mixture, anchor = config.tokens, config.anchor
    facts: dict[str, Any] = {
        "model": model.to_dict(),
        "tokenizer": tokenizer.fingerprint,
        "objective": config.objective.to_dict(),
        "anchor": None if anchor is None else anchor.model_dump(mode="json", exclude={"fisher"}),
    }
    if isinstance(mixture, MixtureConfig):
        facts["mixture"] = mixture.model_dump(mode="json", exclude={"sources": {"__all__": {"tokens"}}})
    if config.packing != "concatenate":
        facts["packing"] = config.packing
    return facts | {role: content_hash(path) for role, path in parents_of(config).items() if role != "tokenizer"}


def parents_of(config: PretrainConfig) -> dict[str, Path]:
    """Everything that was read, by field."""
    parents = {"tokenizer": config.tokenizer}
    if isinstance(config.tokens, Path):
        parents["tokens"] = config.tokens
    else:
        parents |= {f"tokens.sources.{name}.tokens": s.tokens for name, s in config.tokens.sources.items()}
    if config.init_from is not None:
        parents["init_from"] = config.init_from
    if config.anchor is not None and config.anchor.fisher is not None:
        parents["anchor.fisher"] = config.anchor.fisher
    return parents | {f"also_validate.{name}": path for name, path in config.also_validate.items()}


def _bytes_per_target(
    wired: WiredObjective, shares: Shares, sources: list[Source], tokenizer: Tokenizer
) -> float | None:
    """Of text, for each token that is learned; None where targets are not the next tokens, or without text."""
    if not wired.next_tokens:
        return None
    known = [bytes_per_target(source.train, tokenizer) for source in sources]
    whole = [shares[s.name]["share"] * b for s, b in zip(sources, known, strict=True) if b is not None]
    return sum(whole) if len(whole) == len(sources) else None


def _flops_per_token(config: PretrainConfig, model: ModelConfig, shares: Shares, sources: list[Source]) -> float | None:
    """Forward and backward, with the attention that documents of these lengths need and no more.

    None where an objective runs more than the model, or reads other tokens than the rows'.
    """
    if config.objective.kind not in CUT:
        return None
    keys = 0.0
    for source in sources:
        lengths = np.minimum(source.train.lengths, config.train.sequence_length).astype(np.float64)
        keys += shares[source.name]["share"] * float((lengths * lengths).sum() / lengths.sum())
    return flops_per_token(model, keys / 2 if model.output_stack.causal else keys).training


def _summary(result: TrainResult, parameters: int) -> dict[str, float]:
    """The figures for the manifest."""
    kept = ("loss", "tokens", "tokens_per_second", "mfu", "validation_", "bits_per_byte.", "forgetting.")
    return {"parameters": parameters, "steps": result.step,
            **{k: v for k, v in result.metrics.items() if k.startswith(kept)}}  # fmt: skip
