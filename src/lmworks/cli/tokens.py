"""`lmworks data convert-tokens`: token files in another form. Knows no form."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("sources", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--tokenizer", type=click.Path(path_type=Path), help="Folder of the tokenizer that made the tokens.")
@click.option("--validation", type=click.Path(path_type=Path), multiple=True, help="Held-out documents of a folder.")
@click.option("--vocab-size", type=click.IntRange(min=1), help="Instead of a tokenizer.")
@click.option("--end-token", type=click.IntRange(min=0), help="Id between the documents of .bin files, likewise.")
def convert(
    sources: tuple[Path, ...], target: Path, tokenizer: Path | None, validation: tuple[Path, ...],
    vocab_size: int | None, end_token: int | None,
) -> None:  # fmt: skip
    """Write the documents of SOURCES as TARGET: a new .ds or .bin file, or a new folder that training reads.

    A source is a .ds file of datatrove with its index, a .bin file of nanoGPT or llm.c, or a split's folder such as
    runs/tokens/train. What was written is read back and compared; nothing is written over.
    Beside a file lies NAME.lineage.json, which says what it was made from: `trace` and `data forget` go on through it.
    Files from elsewhere know no documents by name.
    """
    from lmworks.data.tokens.convert import convert_tokens
    from lmworks.tokenization import load_tokenizer

    accounts = convert_tokens(
        sources, target, load_tokenizer(tokenizer) if tokenizer else None, validation=validation,
        vocab_size=vocab_size, end_token=end_token,
    )  # fmt: skip
    for name, account in accounts.items():
        click.echo(f"{name}: {account.documents:,} documents, {account.tokens:,} tokens")
        if account.empty:
            click.echo(f"{account.empty:,} documents without tokens were left out")
        if account.unmarked:
            click.echo(f"{account.unmarked:,} documents lost the mark in front of them: a .bin has one between two")
