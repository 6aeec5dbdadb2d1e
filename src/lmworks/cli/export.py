"""`lmworks export gguf MODEL OUTPUT` writes a file for llama.cpp, `export checkpoint RUN OUTPUT` a Hugging Face folder.

Each with the tokenizer. Knows no format.
"""

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
    from lmworks.core.code_version import code_version
    from lmworks.core.lineage import write_artifact
    from lmworks.models.hub import load_pretrained
    from lmworks.tokenization import load_tokenizer
    from lmworks.tokenization.gguf_export import gguf_metadata

    tokenizer, loaded = load_tokenizer(model), load_pretrained(model)
    metadata = gguf_metadata(tokenizer, loaded.config.vocab_size)
    with write_artifact(
        output, "model", config={"model": str(model), "dtype": dtype}, parents={"model": model},
        code_version=code_version(save_gguf.__module__), one_file=True,
    ) as writer:  # fmt: skip
        save_gguf(loaded, metadata, writer.folder / output.name, dtype=cast("DType", dtype))
    click.echo(f"{output}: {output.stat().st_size:,} bytes")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path, file_okay=False))
@click.option("--step", type=click.IntRange(min=0), help="Of the checkpoint; the newest, where it is left out.")
def checkpoint(run: Path, output: Path, step: int | None) -> None:
    """Write a checkpoint of RUN as a Hugging Face model folder with its tokenizer, OUTPUT, while RUN may go on.

    RUN is the folder that `lmworks pretrain` writes, or the one of its checkpoints; start this where the run was
    started. It may have run on any number of processes.
    """
    from lmworks.cli.trace_rows import config_of
    from lmworks.train.pretrain import run_folder_of
    from lmworks.train.run_export import export_run
    from lmworks.train.run_log import SETTINGS_FILE

    folder = run if (run / SETTINGS_FILE).is_file() else run_folder_of(run)
    made = export_run(config_of(run), folder, output, step)
    steps, parameters = made.config["steps"], int(made.metrics["parameters"])
    click.echo(f"{output}: step {made.config['step']} of {steps}, {parameters:,} parameters")
