"""`lmworks export gguf MODEL OUTPUT`: a model and its tokenizer as one file for llama.cpp. Knows no format."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--dtype",
    type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
    default="q8_0",
    show_default=True,
    help="Of matrices; q8_0 is 8-bit integers with a scale for every 32. Vectors stay float32.",
)
def gguf(model: Path, output: Path, dtype: str) -> None:
    """Write MODEL, a model folder or GGUF file, with its tokenizer to OUTPUT, a .gguf file."""
    from typing import cast

    from lmworks.compress.gguf_export import DType, save_gguf
    from lmworks.models.hub import load_pretrained
    from lmworks.tokenization import load_tokenizer
    from lmworks.tokenization.gguf_export import gguf_metadata

    tokenizer, loaded = load_tokenizer(model), load_pretrained(model)
    metadata = gguf_metadata(tokenizer, loaded.config.vocab_size)
    save_gguf(loaded, metadata, output, dtype=cast("DType", dtype))
    click.echo(f"{output}: {output.stat().st_size:,} bytes")
