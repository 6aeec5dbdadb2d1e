"""What a pretraining run reads: its tokens artifacts, their rows in the order of a mixture, the share of each.

Knows no model, no objective and no stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lmworks.data.tokens.mixing import MixedRows, MixtureConfig
from lmworks.data.tokens.packing import PackedRows
from lmworks.data.tokens.token_store import TokenStore
from lmworks.tokenization import Tokenizer
from lmworks.train.config import TrainConfig
from lmworks.train.held_out_text import require_tokenizer

Shares = dict[str, dict[str, float]]
"""`share` of the rows and `epochs`, passes over it, by source."""


@dataclass(frozen=True)
class Source:
    """One tokens artifact of a run."""

    name: str
    path: Path
    train: TokenStore
    validation: TokenStore


def open_sources(tokens: Path | MixtureConfig, tokenizer: Tokenizer, tokenizer_path: Path) -> list[Source]:
    """The stores to train on.

    Args:
        tokens: one artifact, called "tokens", or several by name.
        tokenizer: which must have made them.
        tokenizer_path: named in errors.

    Raises:
        ArtifactError: tokens are missing or damaged.
        TokenizerError: they were made with another tokenizer.
    """
    paths = {"tokens": tokens} if isinstance(tokens, Path) else {n: s.tokens for n, s in tokens.sources.items()}
    sources = []
    for name, path in paths.items():
        train, validation = TokenStore(path / "train"), TokenStore(path / "validation")
        require_tokenizer(path, tokenizer, tokenizer_path)
        sources.append(Source(name, path, train, validation))
    return sources


def mixed_rows(
    tokens: Path | MixtureConfig, sources: list[Source], train: TrainConfig, kind: type[PackedRows] = PackedRows
) -> PackedRows | MixedRows:
    """The rows of all sources; the first has the run's seed, so that one alone is what it would be by itself.

    Args:
        tokens: which say how sources are mixed.
        sources: of them.
        train: the run.
        kind: of rows.

    Raises:
        DataError: a source has no documents, or not enough for the run.
    """
    length, seed = train.sequence_length, train.seed
    packed = [kind(source.train, length, seed + 1_000_003 * i) for i, source in enumerate(sources)]
    if isinstance(tokens, Path):
        return packed[0]
    total = train.total_tokens // length
    sizes = {source.name: rows.rows_per_epoch for source, rows in zip(sources, packed, strict=True)}
    limits = [source.max_epochs for source in tokens.sources.values()]
    mixed = MixedRows(packed, tokens.schedule(sizes, total), limits)
    mixed.require(total)
    return mixed


def shares_of(rows: PackedRows | MixedRows, sources: list[Source], train: TrainConfig) -> Shares:
    """What the run takes of each source."""
    total = train.total_tokens // train.sequence_length
    if isinstance(rows, MixedRows):
        return {name: {str(k): v for k, v in figures.items()} for name, figures in rows.report(total).items()}
    return {sources[0].name: {"share": 1.0, "epochs": total / rows.rows_per_epoch}}


def told(shares: Shares) -> str:
    """The shares, to be added to a sentence."""
    if len(shares) == 1:
        return "".join(f", {figures['epochs']:.2f} epochs" for figures in shares.values())
    return "".join(f"; {n} {s['share']:.2%}, {s['epochs']:.2f} epochs" for n, s in shares.items())
