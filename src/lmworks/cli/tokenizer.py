"""`lmworks tokenizer compare` and `extend`. Knows no measure and no vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lmworks.tokenization.compare import Comparison


@click.command()
@click.argument("given", nargs=-1, required=True, metavar="TOKENIZER... [--texts] NAME=FILE...")
@click.option("--texts", multiple=True, metavar="NAME=FILE", help="Texts by a name: .jsonl, or one text.")
@click.option("--max-bytes", default=10_000_000, show_default=True, type=click.IntRange(min=1), help="Of each JSONL.")
@click.option("--weights", is_flag=True, help="Also find entries that the models beside the tokenizers hardly met.")
@click.option("--plot", "image", type=click.Path(dir_okay=False, path_type=Path), help="PNG or SVG to draw.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def compare(
    given: tuple[str, ...], texts: tuple[str, ...], max_bytes: int, weights: bool, image: Path | None, as_json: bool
) -> None:
    """Measure tokenizers on the same texts: folders, tokenizer.json files or GGUF files.

    Tokens per word and per character, bytes per token, unknown tokens, texts that come back exactly, entries that no
    text uses or reaches or that a model was hardly trained on, shared entries, speed.
    """
    from lmworks.core.errors import ConfigError
    from lmworks.tokenization import load_tokenizer
    from lmworks.tokenization.compare import compare as measure

    named = [*texts, *(word for word in given if "=" in word and not Path(word).exists())]
    paths = [word for word in given if word not in named]
    if not paths or not named:
        raise ConfigError("tokenizers are compared on texts", "Give both: runs/a runs/b --texts en=book.txt")
    files = dict(map(_pair, named))
    if len(files) < len(named) or len(set(paths)) < len(paths):
        raise ConfigError("a name of texts or a tokenizer is given twice", "Give each once")
    if image is not None:
        from lmworks.tokenization.compare_plot import check_image, plot_comparison

        check_image(image)
    tokenizers = {path: load_tokenizer(path) for path in paths}
    heads = {path: _head(Path(path)) for path in paths} if weights else {}
    found = measure(tokenizers, {name: _documents(Path(file), max_bytes) for name, file in files.items()}, heads)
    if image is not None:
        plot_comparison(found, image)
    if as_json:
        click.echo(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        _show(found)


def _pair(word: str) -> tuple[str, str]:
    from lmworks.core.errors import ConfigError

    name, equals, file = word.partition("=")
    if not (name and equals and file):
        raise ConfigError(f"{word!r} is not NAME=FILE", "Write, for example, --texts en=book.txt")
    return name, file


_HEADS = ("output.weight", "lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("token_embd.weight", "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight")


def _head(path: Path) -> NDArray[np.float32]:
    """The output matrix `[V, E]` of a GGUF file or a model's folder; where it has none, the embedding is both."""
    from lmworks.core.errors import ConfigError
    from lmworks.core.gguf import open_gguf
    from lmworks.models.hub.gguf import GGUFSource
    from lmworks.models.hub.safetensors_io import SafetensorsSource

    source = GGUFSource(open_gguf(path)) if path.suffix == ".gguf" else SafetensorsSource(path)
    for ending in (*_HEADS, *_EMBEDDINGS):
        for name in source.shapes():
            if name == ending or name.endswith("." + ending):
                return source.tensor(name).float().numpy()
    raise ConfigError(f"{path} holds neither a head nor an embedding", "Give models, or leave out --weights")


def _documents(file: Path, max_bytes: int) -> list[str]:
    """Of a JSONL file the `text` of rows from all over it, of any other file its whole text."""
    from lmworks.core.errors import DataError
    from lmworks.tokenization.corpus_texts import read_texts

    try:
        if file.suffix == ".jsonl":
            return list(read_texts(file, max_bytes))
        return [file.read_text(encoding="utf-8")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}", "Give a JSONL file or a text in UTF-8") from None


def _show(found: Comparison) -> None:
    from rich.table import Table

    from lmworks.cli.terminal import stdout

    console = stdout()
    table = Table(
        "texts", "tokenizer", "tokens", "bytes/token", "tokens/word", "tokens/char", "unknown", "exact", "MB/s"
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for name in next(iter(found.texts.values())):
        for tokenizer, figures in found.texts.items():
            f = figures[name]
            table.add_row(
                name, tokenizer, f"{f.tokens:,}", f"{f.bytes_per_token:.2f}", f"{f.tokens_per_word:.2f}",
                f"{f.tokens_per_character:.2f}", f"{f.unknown_share:.2%}", f"{f.exact_share:.0%}",
                f"{f.megabytes_per_second:.1f}",
            )  # fmt: skip
    console.print(table)
    table = Table("tokenizer", "entries", "unused", "unreachable", "part of a character", "unreachable, for example")
    for column in table.columns[1:5]:
        column.justify = "right"
    for tokenizer, v in found.vocabularies.items():
        counts = (v.vocab_size, v.unused, v.unreachable, v.partial)
        table.add_row(tokenizer, *(f"{n:,}" for n in counts), " ".join(repr(text) for text in v.examples[:4]))
    console.print(table, markup=False)
    for tokenizer, v in found.vocabularies.items():
        if v.under_trained is not None:
            shown = " ".join(repr(text) for text in v.under_trained_examples)
            console.print(f"{tokenizer}: {v.under_trained:,} entries look untrained: {shown}", markup=False)
    for (first, second), share in found.overlap.items():
        console.print(f"{first} and {second} share {share:.0%} of their entries", markup=False)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path, file_okay=False))
@click.option("--token", "tokens", multiple=True, help="Token to add as it is written; repeatable.")
@click.option("--special", is_flag=True, help="The tokens are markers that no text becomes.")
@click.option("--corpus", type=click.Path(path_type=Path), help="JSONL file to learn further merges from.")
@click.option("--num-tokens", default=1000, show_default=True, type=click.IntRange(min=1), help="To learn at most.")
@click.option("--max-bytes", default=10_000_000, show_default=True, type=click.IntRange(min=1), help="To learn from.")
@click.option(
    "--pad-to-multiple-of", "multiple_of", default=1, type=click.IntRange(min=1), help="Rows of a model, divisible."
)
def extend(
    source: Path, output: Path, tokens: tuple[str, ...], special: bool, corpus: Path | None, num_tokens: int,
    max_bytes: int, multiple_of: int,
) -> None:  # fmt: skip
    """Write SOURCE, a tokenizer or a model with its tokenizer, to OUTPUT with a larger vocabulary.

    Old ids stay. A model's new rows begin as the mean of the rows of what stood in their place before.
    """
    from lmworks.core.code_version import code_version
    from lmworks.core.errors import ConfigError
    from lmworks.core.lineage import write_artifact
    from lmworks.tokenization import load_tokenizer
    from lmworks.tokenization.corpus_texts import read_texts
    from lmworks.tokenization.extending import add_merges, add_tokens

    if bool(tokens) == (corpus is not None):
        raise ConfigError("an extension takes either tokens or a corpus", "Give --token, or --corpus with a JSONL file")
    if special and corpus is not None:
        raise ConfigError("tokens that are learned from texts are not special", "Leave out --special")
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty", "Give a new folder")
    old = load_tokenizer(source)
    if corpus is None:
        found = add_tokens(old, tokens, special)
    else:
        found = add_merges(old, read_texts(corpus, max_bytes), num_tokens)
    kind = "model" if source.is_dir() and (source / "config.json").exists() else "tokenizer"
    parents = {kind: source} | ({"corpus": corpus} if corpus is not None else {})
    settings: dict[str, object] = {"tokens": list(tokens), "special": special, "pad_to_multiple_of": multiple_of}
    settings |= {} if corpus is None else {"num_tokens": num_tokens, "max_bytes": max_bytes}
    with write_artifact(
        output, kind, config=settings, parents=parents, code_version=code_version(add_tokens.__module__)
    ) as writer:
        if kind == "model":
            from lmworks.models.extended_vocabulary import extend_vocabulary
            from lmworks.models.hub import load_pretrained, save_pretrained

            model = load_pretrained(source)
            extend_vocabulary(model, found.pieces, multiple_of)
            save_pretrained(model, writer.folder)
        found.tokenizer.save(writer.folder)
    click.echo(f"{output}: {len(found.pieces)} new tokens, {found.tokenizer.vocab_size:,} in all")
