"""The pretrain stage: from token shards and a tokenizer to a model folder. Knows no text.

The run's checkpoints live beside the output, in `<output>.checkpoints`, until the model is published.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.errors import DataError, MissingExtraError, TokenizerError
from lmworks.core.lineage import Manifest, clock, content_hash, verify, write_artifact
from lmworks.core.progress import say
from lmworks.data.tokens.packing import PackedRows
from lmworks.data.tokens.token_store import TokenStore
from lmworks.models.accounting import flops_per_token
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.hub import save_pretrained
from lmworks.objectives.causal_lm import causal_lm
from lmworks.optim.mup import scale_initial_weights
from lmworks.tokenization import load_tokenizer
from lmworks.train.callbacks import Callback, StepEnd, every
from lmworks.train.config import TrainConfig
from lmworks.train.model_preset import ModelPreset
from lmworks.train.moe import balanced
from lmworks.train.plot import plot_run
from lmworks.train.trainer import Trainer, TrainResult
from lmworks.train.validation import bits_per_byte

SAMPLED_DOCUMENTS = 200
"""Training documents by which the bytes of a token are estimated."""


class PretrainConfig(Config):
    """Train a model from random weights on tokenized documents."""

    model: ModelPreset = ModelPreset()
    """Family and sizes; the vocabulary is the tokenizer's."""
    tokens: Path
    """Tokens artifact with a `train` and a `validation` split."""
    tokenizer: Path
    """Tokenizer folder that made the tokens."""
    output: Path
    """Model folder to write."""
    train: TrainConfig
    """How long and on how much at a time."""
    validation_documents: Annotated[int, Field(gt=0)] = 200
    """At most this many validation documents are measured during and after training."""
    profile: bool = False
    """Trace a few early steps, and write the trace and a report of the bottlenecks to `<output>.profile`."""


def pretrain(config: PretrainConfig) -> Manifest:
    """Train, and write the model folder with its tokenizer, `metrics.jsonl` and `loss.png`.

    Started again after a stop or a crash, it goes on from the newest intact checkpoint.

    Raises:
        ArtifactError: the tokens are missing or damaged.
        TokenizerError: the tokens were made with another tokenizer.
        DataError: there is nothing to train on or to validate with.
        TrainingError: the guard halts the run, or the checkpoints there are of another run.
    """
    started = clock()
    version = code_version(__name__)
    tokenizer = load_tokenizer(config.tokenizer)
    train, validation = TokenStore(config.tokens / "train"), TokenStore(config.tokens / "validation")
    made_with = verify(config.tokens).notes.get("tokenizer_fingerprint")
    if made_with != tokenizer.fingerprint:
        raise TokenizerError(
            f"the tokens in {config.tokens} were made with the tokenizer {made_with}, "
            f"and the one in {config.tokenizer} is {tokenizer.fingerprint}",
            "Tokenize the corpus again with this tokenizer, or name the one that was used",
        )
    model_config = config.model.to_model_config(
        vocab_size=tokenizer.vocab_size,
        sequence_length=config.train.sequence_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=tokenizer.eos_token_ids,
    )
    model = build_model(model_config, seed=config.train.seed)
    scale_initial_weights(model, config.train.optimizer)
    parameters = sum(p.numel() for p in model.parameters())
    epochs = config.train.total_tokens / max(1, train.num_tokens)
    say(f"{parameters / 1e6:.2f}M parameters, {train.num_tokens:,} training tokens, {epochs:.2f} epochs")
    run_folder = config.output.with_name(config.output.name + ".checkpoints")
    result = Trainer(
        model,
        balanced(causal_lm, model_config, config.train.router_bias_update_speed),
        PackedRows(train, config.train.sequence_length, config.train.seed),
        config.train,
        run_folder,
        code_version=version,
        callbacks=[every(config.train.eval_every, _validation(config, validation, tokenizer))],
        identity={
            "model": model_config.to_dict(),
            "tokens": content_hash(config.tokens),
            "tokenizer": tokenizer.fingerprint,
        },
        flops_per_token=_training_flops_per_token(model_config, train, config.train.sequence_length),
        bytes_per_target=_bytes_per_target(train, tokenizer),
        profile=config.output.with_name(config.output.name + ".profile") if config.profile else None,
    ).fit()
    with write_artifact(
        config.output,
        "model",
        config=config.to_dict(),
        parents={"tokens": config.tokens, "tokenizer": config.tokenizer},
        code_version=version,
        started=started,
    ) as writer:
        save_pretrained(model, writer.folder)
        tokenizer.save(writer.folder)
        shutil.copyfile(result.metrics_file, writer.folder / "metrics.jsonl")
        if (events := run_folder / "events.jsonl").exists():
            shutil.copyfile(events, writer.folder / "events.jsonl")
        try:
            plot_run(result.metrics_file, writer.folder / "loss.png")
        except MissingExtraError as error:
            say(f"no loss.png: {error}")
        writer.metrics.update(_summary(result, parameters))
    shutil.rmtree(run_folder)
    assert writer.manifest is not None
    return writer.manifest


def _validation(config: PretrainConfig, store: TokenStore, tokenizer: Any) -> Callback:
    """Measures bits per byte on some of the validation documents."""
    documents = _spread(store, config.validation_documents)
    num_bytes = _text_bytes(documents, tokenizer)
    if not num_bytes:
        raise DataError(f"{store.path} holds no text to validate with", "Keep some documents for validation")

    def measure(end: StepEnd) -> dict[str, float]:
        model: Any = end.model
        model.eval()
        value = bits_per_byte(model, documents, num_bytes, window=config.train.sequence_length)
        model.train()
        say(f"step {end.step}: validation {value:.4f} bits per byte")
        return {"validation_bits_per_byte": value}

    return measure


def _spread(store: TokenStore, at_most: int) -> list[NDArray[np.unsignedinteger]]:
    """Some documents over the whole store: neighbors come from one source."""
    count = min(len(store), at_most)
    return [store[i * len(store) // count] for i in range(count)]


def _text_bytes(documents: list[NDArray[np.unsignedinteger]], tokenizer: Any) -> int:
    """UTF-8 bytes of their texts: byte-level tokens know their bytes, so the texts themselves are not needed."""
    return sum(len(tokenizer.token_bytes(int(token))) for ids in documents for token in ids[1:-1])


def _bytes_per_target(store: TokenStore, tokenizer: Any) -> float | None:
    """Of text, for each token that is learned, over some training documents; None without text."""
    documents = _spread(store, SAMPLED_DOCUMENTS)
    num_bytes = _text_bytes(documents, tokenizer)
    return num_bytes / sum(len(ids) - 1 for ids in documents) if num_bytes else None


def _training_flops_per_token(model: ModelConfig, store: TokenStore, sequence_length: int) -> float:
    """Forward and backward, with the causal attention that documents of these lengths need and no more."""
    lengths = np.minimum(store.lengths, sequence_length).astype(np.float64)
    keys_per_query = float((lengths * lengths).sum() / lengths.sum() / 2)
    return flops_per_token(model, keys_per_query).training


def _summary(result: TrainResult, parameters: int) -> dict[str, float]:
    """The figures for the manifest."""
    kept = ("loss", "tokens", "tokens_per_second", "mfu", "validation_bits_per_byte")
    return {"parameters": parameters, "steps": result.step, **{k: v for k, v in result.metrics.items() if k in kept}}
