"""What filtering buys against what it costs: filtered, unfiltered and repeated text at equal bytes of training.

The raw pool is what CPython's own library holds: its docstrings and its code, cut into pieces. The published rules of
Gopher keep a few percent of it, docstrings nearly all. Every arm trains the same tiny model on the same number of
bytes: the pool once; what the rules keep of it, over and over; a quarter of that, four times as often; both pool and
kept text in equal shares; and, as a bound, what the rules keep of all other files, some five times as much. All are
judged in bits per byte on kept text of files that nobody trains on, after a quarter, a half and all of the bytes. Seeds
choose the pool, the weights and the order. The rate is constant, so that the shorter budgets are fair.

What it cannot say: the noise here is another kind of text (code), not bad prose from the web; models are tiny; and
repeats hurt larger models sooner. About eight minutes on two cores.

    python benchmarks/data_quality_quantity.py [--quick] [--save]
"""

from __future__ import annotations

import argparse
import ast
import multiprocessing
import os
import random
import statistics
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved import finish, row
from numpy.typing import NDArray

from lmworks.core.generation import Document
from lmworks.data.corpus.clean import RuleStep
from lmworks.data.steps import Tally
from lmworks.data.tokens.mixing import MixedRows, MixtureConfig
from lmworks.data.tokens.packing import PackedRows
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.slots import AttentionConfig, MLPConfig
from lmworks.objectives.causal_lm import causal_lm
from lmworks.optim.clipping import ClippingConfig, clip_gradients, gradient_norms
from lmworks.optim.optimizer import CompositeOptimizer, OptimizerConfig

ARMS = ("raw", "filtered", "quarter", "half and half", "five times")
END = 0
"""The byte behind each document."""
PIECE = 2000
"""Most characters of a piece of code."""
LEAST = 200
"""Fewest characters of a docstring that is a document."""
ROWS, LENGTH = 16, 256
STEPS, QUICK_STEPS = 320, 24
SEEDS, QUICK_SEEDS = 4, 2
WARM_UP = 20
HELD_OUT = 64
"""Rows to be judged by."""


@dataclass(frozen=True)
class Texts:
    """The documents of a file: all, and those that the rules keep."""

    all: tuple[str, ...]
    kept: tuple[str, ...]


class Bytes:
    """Documents as the bytes of their text, in the shape of a token store."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._documents = [np.frombuffer(text.encode("utf-8", "replace") + bytes([END]), np.uint8) for text in texts]
        self.lengths: NDArray[np.int64] = np.array([len(ids) for ids in self._documents], np.int64)

    def __getitem__(self, index: int) -> NDArray[np.unsignedinteger]:
        return self._documents[index]


def documents_of(source: str) -> Iterator[str]:
    """Docstrings, and the code in pieces that end with a line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if len(text) >= LEAST:
                yield text
    piece = ""
    for line in source.splitlines(keepends=True):
        if len(piece) + len(line) > PIECE and piece:
            yield piece
            piece = ""
        piece += line
    if piece:
        yield piece


@cache
def library() -> tuple[Texts, ...]:
    """Of every file of the standard library that can be read, but for tests and packages of others."""
    root = Path(sysconfig.get_paths()["stdlib"])
    rules, tally, made = RuleStep("gopher", None), Tally(), []
    for path in sorted(root.rglob("*.py")):
        if {"test", "tests", "site-packages", "idle_test"} & set(path.relative_to(root).parts):
            continue
        try:
            texts = tuple(documents_of(path.read_text(encoding="utf-8")))
        except (SyntaxError, ValueError):
            continue
        kept = tuple(t for t in texts if isinstance(rules(Document("", t, "", ""), tally), Document))
        made.append(Texts(texts, kept))
    return tuple(made)


def parts(seed: int, budget: int) -> dict[str, Bytes]:
    """The pool, what is kept of it, a quarter of that, what is kept of other files, and text to be judged by."""
    files = list(library())
    random.Random(0).shuffle(files)
    held_out, files = files[: len(files) // 8], files[len(files) // 8 :]
    random.Random(seed).shuffle(files)
    size = taken = 0
    while size < budget and taken < len(files):
        size += sum(map(len, files[taken].all))
        taken += 1
    pool, others = files[:taken], files[taken:]
    kept = [text for file in pool for text in file.kept]
    return {
        "raw": Bytes([text for file in pool for text in file.all]),
        "filtered": Bytes(kept),
        "quarter": Bytes(kept[::4]),
        "five times": Bytes([text for file in others for text in file.kept]),
        "judged": Bytes([text for file in held_out for text in file.kept]),
    }


def rows_of(arm: str, texts: dict[str, Bytes], seed: int, total: int) -> PackedRows | MixedRows:
    """What an arm trains on."""
    if arm != "half and half":
        return PackedRows(texts[arm], LENGTH, seed)
    sources = {name: {"tokens": name, "weight": 0.5} for name in ("filtered", "raw")}
    packed = [PackedRows(texts[name], LENGTH, seed + number) for number, name in enumerate(sources)]
    sizes = {name: each.rows_per_epoch for name, each in zip(sources, packed, strict=True)}
    return MixedRows(packed, MixtureConfig.parse({"sources": sources}).schedule(sizes, total))


def model_config() -> ModelConfig:
    """A LLaMA of 0.2 million parameters."""
    return ModelConfig(
        vocab_size=256,
        hidden_size=96,
        max_position_embeddings=LENGTH,
        decoder=StackConfig(
            num_hidden_layers=2,
            attention=AttentionConfig(num_attention_heads=3, num_key_value_heads=3, head_dim=32),
            mlp=MLPConfig(intermediate_size=256),
        ),
    )


def train(run: tuple[str, int, int]) -> dict[str, Any]:
    """Bits per byte at a quarter, a half and the end, and passes over the kept text; of an arm, a seed and steps."""
    arm, seed, steps = run
    texts = parts(seed, steps * ROWS * LENGTH)
    rows = rows_of(arm, texts, seed, steps * ROWS)
    judged = PackedRows(texts["judged"], LENGTH, 0)
    model: Any = build_model(model_config(), seed=seed)
    optimizer = CompositeOptimizer(model, OptimizerConfig.parse({"kind": "adamw", "lr": 3e-3}))
    bits = {}
    for step in range(steps):
        loss = causal_lm(model, rows.rows(step * ROWS, ROWS))
        torch.autograd.backward(loss.loss_sum / loss.n_targets)
        clip_gradients(model, gradient_norms(model), ClippingConfig(limit=1.0))
        optimizer.step(min(1.0, (step + 1) / WARM_UP))
        optimizer.zero_grad()
        if step + 1 in (steps // 4, steps // 2, steps):
            with torch.no_grad():
                measured = [causal_lm(model, judged.rows(n, ROWS)) for n in range(0, HELD_OUT, ROWS)]
            nats = sum(float(m.loss_sum) for m in measured) / sum(float(m.n_targets) for m in measured)
            bits[step + 1] = nats / float(np.log(2))
    pool, kept = (int(texts[name].lengths.sum()) for name in ("raw", "filtered"))
    seen = steps * ROWS * (0.5 if arm == "half and half" else 1.0)
    store = texts["filtered" if arm == "half and half" else arm]
    return {"bits": bits, "kept_share": kept / pool, "passes": seen * LENGTH / int(store.lengths.sum())}


def compared(
    arm: str, step: int, steps: int, runs: Sequence[dict[str, Any]], bits: dict[str, list[float]]
) -> dict[str, Any]:
    """An arm against the raw pool after so many steps, seed by seed."""
    case = f"{arm}, {step * ROWS * LENGTH // 1000:,} kB"
    ours, raw = bits[arm], bits["raw"]
    return row(case, ours, "bits/byte", {"raw": raw}, None, less_is_better=True) | {
        "ours": round(statistics.median(ours), 4), "theirs": round(statistics.median(raw), 4),
        "ratio": round(statistics.median(ours) / statistics.median(raw), 4),
        "least": round(min(ours), 4), "most": round(max(ours), 4),
        "better_seeds": sum(a < b for a, b in zip(ours, raw, strict=True)), "seeds": len(runs),
        "passes": round(statistics.median(run["passes"] for run in runs) * step / steps, 2),
        "kept_share": round(statistics.median(run["kept_share"] for run in runs), 3),
    }  # fmt: skip


def main() -> None:
    """Train all arms on all seeds, and compare each with the raw pool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps and seeds, under a minute")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    options = parser.parse_args()
    steps, seeds = (QUICK_STEPS, QUICK_SEEDS) if options.quick else (STEPS, SEEDS)
    runs = [(arm, seed, steps) for seed in range(seeds) for arm in ARMS]
    library()  # read once, for all processes that are forked below
    copied = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(os.cpu_count() or 1, copied, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        told = dict(zip(runs, pool.map(train, runs), strict=True))
    rows: list[dict[str, Any]] = []
    for step in (steps // 4, steps // 2, steps):
        bits = {arm: [told[arm, seed, steps]["bits"][step] for seed in range(seeds)] for arm in ARMS}
        rows += [compared(arm, step, steps, [told[arm, s, steps] for s in range(seeds)], bits) for arm in ARMS]
    finish("data_quality_quantity", rows, save=options.save)


if __name__ == "__main__":
    main()
