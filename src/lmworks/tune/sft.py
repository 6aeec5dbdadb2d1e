"""Stage `tune sft`: teach a model to answer, from conversations, in full or with LoRA. Knows no engine and no HTTP.

Only what the assistant says is learned, its end-of-turn marker included. The run's checkpoints live beside
the output, in `<output>.checkpoints`, until the model is published.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from lmworks.adapters import LoraConfig, inject_lora, merge_and_unload, save_adapter
from lmworks.core.code_version import code_version
from lmworks.core.config import Config
from lmworks.core.errors import ConfigError, DataError, MissingExtraError, TokenizerError
from lmworks.core.lineage import Manifest, clock, content_hash, write_artifact
from lmworks.core.messages import Message
from lmworks.core.progress import say
from lmworks.data.rows.conversations import ConversationRows, load_conversations
from lmworks.models.families import family_named
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.models.hub.tensor_source import own_state
from lmworks.models.transformer import Transformer
from lmworks.nn.quantized import QuantizedLinear
from lmworks.objectives.causal_lm import causal_lm
from lmworks.optim.optimizer import OptimizerConfig
from lmworks.optim.schedules import ScheduleConfig
from lmworks.tokenization import Tokenizer, check_compatible, load_tokenizer
from lmworks.tokenization.chat_template import CHATML
from lmworks.train.callbacks import Callback, StepEnd, every
from lmworks.train.config import TrainConfig
from lmworks.train.moe import balanced
from lmworks.train.plot import plot_run
from lmworks.train.trainer import Trainer
from lmworks.tune.held_out import Conversation, choose, validation_loss

Positive = Annotated[int, Field(gt=0)]

HELD_OUT = "held_out.jsonl"
"""In the model folder: the conversations that were not learned from, for whoever samples answers to them."""

USUAL_LENGTH = 512


class FineTuningOptimizer(OptimizerConfig):
    """What updates the weights; gentler than in pretraining."""

    kind: Literal["adamw", "muon"] = "adamw"
    """AdamW (arXiv:1711.05101) for everything, or Muon (Jordan et al., 2024) for the hidden matrices."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate of AdamW. Models above a hundred million parameters want less, adapters bear more."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled; applies to matrices and an untied head, never to embeddings, norms and biases."""


class SFTConfig(Config):
    """Fine-tune a model on conversations."""

    model: Path
    """Model folder, with its tokenizer, or `.gguf` file to start from."""
    conversations: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Source folders with `conversations.jsonl`, or `.jsonl` files in a common chat layout."""
    output: Path
    """Model folder to write."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and merge them at the end; None trains every weight."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the conversations."""
    max_steps: Positive | None = None
    """Stop after this many updates, though passes are left."""
    max_conversations: Positive | None = None
    """Learn from this many at most, chosen by the seed."""
    validation_conversations: Annotated[int, Field(ge=0)] = 200
    """About this many are held out to measure with, a tenth of all at most."""
    sequence_length: Positive | None = None
    """Longest conversation in tokens, later ones are cut; by default the model's context, 512 at most."""
    batch_tokens: Positive = 8192
    """About how many tokens one update sees."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the forward and backward pass. The weights that are updated stay float32."""
    optimizer: FineTuningOptimizer = FineTuningOptimizer()
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the updates over which the learning rate rises; then it falls as a cosine."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this global norm; None never scales."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints."""
    eval_every: Positive | None = None
    """Steps between measurements on held-out conversations; None measures before and after only."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Fixes the split, the order of conversations, the adapters' first values and dropout."""


def sft(config: SFTConfig) -> Manifest:
    """Train, and write a model folder that ends its turns, with its chat template.

    With LoRA, the folder holds the merged weights, and `adapter/` the adapter in PEFT's layout where the
    family's layers have one. Started again after a stop or a crash, it goes on from the newest intact
    checkpoint.

    Raises:
        ConfigError: the model is quantized, or `sequence_length` exceeds its context.
        TokenizerError: the tokenizer does not fit the model, or its chat template cannot be learned from.
        DataError: the conversations are damaged, too few, or one has nothing to learn.
        TrainingError: the loss is not finite, or the checkpoints there are of another run.
    """
    started = clock()
    version = code_version(__name__)
    tokenizer = chat_tokenizer(load_tokenizer(config.model))
    model = load_pretrained(config.model, dtype=torch.float32)
    check_compatible(tokenizer, model.config.vocab_size)
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise ConfigError(f"the weights of {config.model} are quantized and cannot be trained", "Give the model before")
    model.config = model.config.model_copy(update={"eos_token_ids": tokenizer.eos_token_ids})
    training, held_out = choose(
        [conversation for path in config.conversations for conversation in load_conversations(path)],
        held_out=config.validation_conversations,
        at_most=config.max_conversations,
        seed=config.seed,
    )
    if not training:
        raise DataError("no conversation is left to learn from", "Raise max_conversations or give more data")
    length = _sequence_length(config, model.config.max_position_embeddings)
    rows = ConversationRows(training, tokenizer, length, config.seed)
    measured = ConversationRows(held_out, tokenizer, length, config.seed) if held_out else None
    train = _train_config(config, length, rows.rows_per_epoch)
    metrics: dict[str, float] = {
        "conversations": len(rows),
        "truncated_conversations": rows.num_truncated,
        "dropped_conversations": rows.num_dropped,
        "held_out_conversations": len(held_out),
        "assistant_tokens_per_epoch": rows.targets_per_epoch,
        "epochs": train.steps * train.rows_per_step / rows.rows_per_epoch,
    }
    if measured is not None:
        metrics["validation_loss_before"] = validation_loss(model, measured)
    names = adapter_names(model) if config.lora is not None else {}
    if config.lora is not None:
        inject_lora(model, config.lora, seed=config.seed)
    metrics["parameters"] = sum(p.numel() for p in model.parameters())
    metrics["trainable_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say(f"{len(rows):,} conversations, {metrics['trainable_parameters'] / 1e6:.2f}M trainable parameters")
    run_folder = config.output.with_name(config.output.name + ".checkpoints")
    result = Trainer(
        model,
        # Adapters leave the routers as they are: their losses shape what reaches them, their biases stay.
        balanced(causal_lm, model.config, 0.0 if config.lora is not None else train.router_bias_update_speed),
        rows,
        train,
        run_folder,
        code_version=version,
        callbacks=[every(config.eval_every, _measure(measured))] if measured and config.eval_every else [],
        identity={
            "model": content_hash(config.model),
            "conversations": [content_hash(path) for path in config.conversations],
            "held_out": len(held_out),
            "max_conversations": config.max_conversations,
            "tokenizer": tokenizer.fingerprint,
            "lora": config.lora.to_dict() if config.lora is not None else None,
        },
    ).fit()
    metrics |= {"steps": result.step, "loss": result.loss}
    parents = {"model": config.model} | {f"conversations.{i}": path for i, path in enumerate(config.conversations)}
    with write_artifact(
        config.output, "model", config=config.to_dict(), parents=parents, code_version=version, started=started
    ) as writer:
        if config.lora is not None:
            _save_adapter(model, config.lora, writer.folder / "adapter", names)
            merge_and_unload(model)
        if measured is not None:
            metrics["validation_loss"] = validation_loss(model, measured)
        save_pretrained(model, writer.folder)
        tokenizer.save(writer.folder)
        _write_conversations(held_out, writer.folder / HELD_OUT)
        shutil.copyfile(result.metrics_file, writer.folder / "metrics.jsonl")
        try:
            plot_run(result.metrics_file, writer.folder / "loss.png")
        except MissingExtraError as error:
            say(f"no loss.png: {error}")
        writer.metrics.update(metrics)
    shutil.rmtree(run_folder)
    assert writer.manifest is not None
    return writer.manifest


def chat_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a chat template, ChatML if it had none, whose end of turn also ends a generation.

    Raises:
        TokenizerError: ChatML's markers are not in the vocabulary, or the template ends the assistant's turn
            with no special token, so that a model could not learn to stop.
    """
    template = tokenizer.chat_template
    if template is None:
        missing = [
            t for t in ("<|im_start|>", "<|im_end|>") if tokenizer.token_id(t) not in tokenizer.special_token_ids
        ]
        if missing:
            raise TokenizerError(
                f"the tokenizer has no chat template and lacks ChatML's {' and '.join(missing)}",
                "Use a tokenizer with a chat template or with these special tokens",
            )
        template = CHATML
    candidate = tokenizer.with_chat_template(template)
    chat = candidate.encode_chat([Message(role="user", content="Hi."), Message(role="assistant", content="Hello.")])
    said = [token for token, mine in zip(chat.token_ids, chat.assistant_mask, strict=True) if mine]
    if not said or said[-1] not in candidate.special_token_ids:
        raise TokenizerError(
            "the chat template ends the assistant's turn with no special token, so the model could not learn to stop",
            "End assistant turns with a special token, inside the generation block if there is one",
        )
    return tokenizer.with_chat_template(template, [candidate.token_bytes(said[-1]).decode()])


def adapter_names(model: Transformer) -> Mapping[str, str]:
    """Our names of linear layers to the Hugging Face model's, for those that are linear layers there too."""
    names: dict[str, str] = {}
    for rule in family_named(model.config.family).rules(model.config, own_state(model)):
        if rule.operations or len(rule.ours) > 1 or not rule.ours[0].endswith(".weight"):
            continue  # fused or transposed on disk
        names[rule.ours[0].removesuffix(".weight")] = rule.theirs[0].removesuffix(".weight")
    return names


def _sequence_length(config: SFTConfig, context: int) -> int:
    length = config.sequence_length or min(context, USUAL_LENGTH)
    if length > context:
        raise ConfigError(f"sequence_length = {length} exceeds the model's context of {context}", "Lower it")
    return length


def _train_config(config: SFTConfig, length: int, rows_per_epoch: int) -> TrainConfig:
    rows_per_step = max(1, config.batch_tokens // length)
    steps = math.ceil(config.epochs * rows_per_epoch / rows_per_step)
    steps = steps if config.max_steps is None else min(steps, config.max_steps)
    return TrainConfig(
        steps=steps,
        batch_tokens=rows_per_step * length,
        sequence_length=length,
        precision=config.precision,
        optimizer=config.optimizer,
        schedule=ScheduleConfig(kind="cosine", warmup_steps=round(config.warmup_ratio * steps)),
        max_grad_norm=config.max_grad_norm,
        checkpoint_every=config.checkpoint_every,
        seed=config.seed,
    )


def _measure(rows: ConversationRows) -> Callback:
    def measure(end: StepEnd) -> dict[str, float]:
        value = validation_loss(end.model, rows)
        say(f"step {end.step}: validation loss {value:.4f} nats per token")
        return {"validation_loss": value}

    return measure


def _save_adapter(model: Transformer, lora: LoraConfig, folder: Path, names: Mapping[str, str]) -> None:
    rename: Callable[[str], str] = names.__getitem__
    try:
        save_adapter(model, lora, folder, rename=rename)
    except KeyError as error:
        say(f"no adapter folder, merged weights only: {error} is fused or transposed in the Hugging Face model")


def _write_conversations(conversations: Sequence[Conversation], file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for number, conversation in enumerate(conversations):
            row = {"id": str(number), "messages": [message.to_template() for message in conversation]}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
