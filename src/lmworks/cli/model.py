"""`lmworks model describe`: what a model is and costs, in closed form. Reads no weights."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--context-length", default=None, type=click.IntRange(min=1), help="Tokens seen.  [default: the longest]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def describe(path: Path, context_length: int | None, as_json: bool) -> None:
    """Count parameters, operations and bytes of PATH, a model folder or GGUF file."""
    import torch
    from rich.table import Table

    from lmworks.cli.terminal import stdout
    from lmworks.models.accounting import flops_per_token, kv_bytes_per_token, parameters, weight_bytes
    from lmworks.models.hub import read_config

    config = read_config(path)
    length = context_length or config.max_position_embeddings
    count = parameters(config)
    facts: dict[str, str | int | float] = {
        "family": config.family,
        "layers": config.decoder.num_hidden_layers,
        "hidden size": config.hidden_size,
        "vocabulary": config.vocab_size,
        "longest context (tokens)": config.max_position_embeddings,
        "parameters": count.total,
        "parameters in blocks": count.linear + count.vectors,
        "parameters in embedding and head": count.embedding + count.head,
        "weights in bfloat16 (bytes)": weight_bytes(config, torch.bfloat16),
        "weights in int8 (bytes)": weight_bytes(config, torch.bfloat16, int8=True),
        "cache per token in bfloat16 (bytes)": kv_bytes_per_token(config, torch.bfloat16),
        f"operations per token, forward, at {length} tokens": flops_per_token(config, length),
    }
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(name, value if isinstance(value, str) else f"{value:,.0f}")
    stdout().print(table)
