"""`lmworks model describe` and `model list`: what models are and cost, in closed form. Reads no weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from lmworks.models.config import ModelConfig, StackConfig

SEQUENCES = (1, 8, 32)
"""Numbers of whole contexts for which memory is shown."""


@click.command()
@click.argument("model", metavar="FOLDER|PRESET")
@click.option("--context-length", default=None, type=click.IntRange(min=1), help="Tokens seen.  [default: the longest]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def describe(model: str, context_length: int | None, as_json: bool) -> None:
    """Describe a model folder, a GGUF file or a preset: architecture, parameters, operations, memory.

    All figures are computed from the configuration. Behind an encoder, sources are as long as what is decoded.
    """
    from lmworks.cli.terminal import stdout

    config = _config(model)
    facts = description(config, context_length or config.max_position_embeddings)
    if as_json:
        click.echo(json.dumps({"model": model, **facts}, ensure_ascii=False))
        return
    console = stdout()
    for part in _rendered(model, facts):
        console.print(part)


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def list_presets(as_json: bool) -> None:
    """List families and their presets, with their parameters."""
    from lmworks.cli.terminal import stdout
    from lmworks.models.accounting import parameters
    from lmworks.models.families.presets import preset_named, preset_names

    table = _table("family", "preset", "parameters", "active", "context", left=2)
    for name, family in preset_names().items():
        config = preset_named(name)
        count = parameters(config)
        if as_json:
            row = {"family": family, "preset": name, "parameters": count.total, "active_parameters": count.active}
            click.echo(json.dumps({**row, "context_length": config.max_position_embeddings}))
        else:
            active = _short(count.active).replace("G", "B") if count.active != count.total else ""
            table.add_row(
                family, name, _short(count.total).replace("G", "B"), active, f"{config.max_position_embeddings:,}"
            )
    if not as_json:
        stdout().print(table)


def _config(model: str) -> ModelConfig:
    from lmworks.core.errors import ConfigError
    from lmworks.models.families.presets import preset_named
    from lmworks.models.hub import read_config

    if Path(model).exists():
        return read_config(Path(model))
    try:
        return preset_named(model)
    except ConfigError as error:
        raise ConfigError(f"{model!r} is no file or folder, and {error.problem}", error.remedy) from None


def description(config: ModelConfig, context_length: int) -> dict[str, Any]:
    """Everything that is shown, as JSON values; bytes are in bfloat16 unless the name says otherwise."""
    import torch

    from lmworks.core.errors import ConfigError
    from lmworks.models.accounting import cache_bytes, flops_per_token, parameters, weight_bytes
    from lmworks.models.memory import training_bytes

    count, flops = parameters(config), flops_per_token(config, context_length)
    bfloat16 = torch.bfloat16
    weights = {
        "float32": weight_bytes(config, torch.float32), "bfloat16": weight_bytes(config, bfloat16),
        "int8": weight_bytes(config, bfloat16, int8=True),
    }  # fmt: skip
    try:
        cache = asdict(cache_bytes(config, bfloat16))
    except ConfigError as error:  # a mixer that whole documents pass through: nothing is kept, nothing is served
        cache = {"per_token": 0, "windowed": 0, "per_source_token": 0, "refused": error.problem}
    per_context = (cache["per_token"] + cache["per_source_token"]) * context_length
    return {
        "family": config.family,
        "head": config.head.kind,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "tied": config.tie_word_embeddings,
        "vision": config.vision.to_dict() if config.vision else None,
        "layers": [row for name, (owner, stack) in config.columns.items() for row in _layers(owner, name, stack)],
        "parameters": {"total": count.total, "active": count.active, **asdict(count)},
        "context_length": context_length,
        "flops_per_token": {"forward": flops.total, "training": flops.training, "parts": asdict(flops)},
        "weight_bytes": weights,
        "cache_bytes": cache,
        "inference": [
            {"sequences": n, "cache": n * per_context} | {k: n * per_context + w for k, w in weights.items()}
            for n in SEQUENCES
        ],
        "training": [
            {"sequences": n, "checkpointing": checkpointing, "total": bytes_.total, **asdict(bytes_)}
            for checkpointing in (False, True)
            for n in SEQUENCES
            for bytes_ in [
                training_bytes(config, n * context_length, context_length=context_length, checkpointing=checkpointing)
            ]
        ],
    }


def _layers(config: ModelConfig, name: str, stack: StackConfig) -> list[dict[str, Any]]:
    """One row per different layer of a stack."""
    return [
        {
            "stack": name,
            "layers": count,
            "attention": (layer.attention or stack.attention).to_dict(),
            "cross_attention": stack.cross_attention.to_dict() if stack.cross_attention else None,
            "mlp": (layer.mlp or stack.mlp).to_dict(),
            "norm": stack.norm.to_dict(),
            "placement": stack.placement,
            "positions": (layer.positions or config.positions).to_dict(),
            "num_hidden_groups": stack.num_hidden_groups,
        }
        for layer, count in stack.kinds()
    ]


def _rendered(model: str, facts: dict[str, Any]) -> list[RenderableType]:
    context, weights, cache = facts["context_length"], facts["weight_bytes"], facts["cache_bytes"]
    tied = ", tied to the head" if facts["tied"] and facts["head"] in ("causal_lm", "masked_lm") else ""
    layers = _table("stack", "layers", "attention", "window", "feed-forward", "norm", "positions", left=1)
    for column in layers.columns[2:]:
        column.justify = "left"
    for row in facts["layers"]:
        window = row["attention"].get("sliding_window")
        shared = f" ({row['num_hidden_groups']} shared)" if row["num_hidden_groups"] else ""
        layers.add_row(
            row["stack"], f"{row['layers']}{shared}", _attention(row), f"{window:,}" if window else "",
            _feed_forward(row["mlp"]), f"{row['norm']['kind']}, {row['placement']}", _positions(row["positions"]),
        )  # fmt: skip
    count = facts["parameters"]
    shares = _table("parameters", "number", "share")
    for part in ("embedding", "head", "linear", "experts", "vectors", "total"):
        if count[part]:
            shares.add_row(part, f"{count[part]:,}", f"{100 * count[part] / count['total']:.1f} %")
    if count["experts"]:
        shares.add_row("active per token", f"{count['active']:,}", f"{100 * count['active'] / count['total']:.1f} %")
    forward = facts["flops_per_token"]
    operations = _table(f"operations per token, {context:,} seen", "number", "share")
    for part, value in forward["parts"].items():
        if value:
            operations.add_row(part.replace("_", " "), _short(value), f"{100 * value / forward['forward']:.1f} %")
    operations.add_row("forward", _short(forward["forward"]), "100.0 %")
    operations.add_row("training", _short(forward["training"]), "")
    inference = _table(f"inference, sequences of {context:,}", "cache", *(f"with {k} weights" for k in weights))
    for row in facts["inference"]:
        inference.add_row(f"{row['sequences']}", *(readable_bytes(row[k]) for k in ("cache", *weights)))
    training = _table(
        f"training, sequences of {context:,}", "weights and gradients", "AdamW", "activations", "head", "total"
    )
    for row in facts["training"]:
        recomputed = ", checkpointed" if row["checkpointing"] else ""
        numbers = (row["weights"] + row["gradients"], row["optimizer"], row["activations"], row["head"], row["total"])
        training.add_row(f"{row['sequences']}{recomputed}", *map(readable_bytes, numbers))
    kept = f"Cache: {cache['per_token']:,} bytes per token in bfloat16"
    if cache["windowed"]:
        kept += f", {cache['windowed']:,} of them in layers that look back only as far as their window"
    if cache["per_source_token"]:
        kept += f"; {cache['per_source_token']:,} per token of the source"
    read = [f"vocabulary {facts['vocab_size']:,}{tied}"] if facts["vocab_size"] else []
    if vision := facts["vision"]:
        read.append(f"images of {vision['image_size']}² pixels in patches of {vision['patch_size']}²")
    return [
        f"{model}: {facts['family']}, {facts['head']} head; hidden size {facts['hidden_size']:,}, {', '.join(read)}, "
        f"context {facts['max_position_embeddings']:,}\n",
        layers, "", shares, "", operations, "",
        f"{kept}." if "refused" not in cache else f"No cache: {cache['refused']}.", inference, "", training,
        "\nTraining in bfloat16 beside float32 weights, on one device; activations are an estimate. Checkpointed: of "
        "each layer the input alone is kept, and the rest computed again.",
    ]  # fmt: skip


def _table(*columns: str, left: int = 1) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right")
    return table


def _attention(row: dict[str, Any]) -> str:
    a = row["attention"]
    if a["kind"] == "mla":
        queries = f", queries through {a['q_lora_rank']:,}" if a["q_lora_rank"] else ""
        text = f"latent of {a['kv_lora_rank']}+{a['qk_rope_head_dim']}, {a['num_attention_heads']} heads{queries}"
    elif a["kind"] == "softmax":
        text = f"{a['num_attention_heads']} heads of {a['head_dim']}, {a['num_key_value_heads']} of keys"
    else:
        text = f"{a['kind'].replace('_', '-')}, {a['num_attention_heads']} heads of {a['head_dim']}"
    return text + ("; and to the encoder" if row["cross_attention"] else "")


def _feed_forward(mlp: dict[str, Any]) -> str:
    kind = f"{mlp['hidden_act']}{', gated' if mlp['gated'] else ''}"
    if mlp["kind"] == "dense":
        return f"{mlp['intermediate_size']:,} {kind}"
    shared = f", shared {mlp['shared_intermediate_size']:,}" if mlp["shared_intermediate_size"] else ""
    return f"{mlp['num_experts_per_tok']} of {mlp['num_experts']} × {mlp['moe_intermediate_size']:,} {kind}{shared}"


def _positions(positions: dict[str, Any]) -> str:
    scaling = positions.get("rope_scaling")
    base = f" {positions['rope_theta']:,.0f}" if "rope_theta" in positions else ""
    return f"{positions['kind'].replace('_', ' ')}{base}" + (f", {scaling['rope_type']}" if scaling else "")


def _short(number: float) -> str:
    """With three digits: 8.03 G."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size * 0.9995:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def readable_bytes(number: float) -> str:
    """In the largest unit up to GiB."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:,.1f} GiB"
