"""How time and memory of each attention grow with length: forward and backward passes of one document.

Prints the exponent fitted to the longest lengths (2: quadratic, 1: linear) beside torch's fused attention. All
cases run in turn in each round of one process. Time is the median over rounds; memory is the highest sum of what
torch's allocator held beyond the inputs, read from the profiler's events (on CUDA: `max_memory_allocated`), so a
library's private scratch space and the interpreter are not in it. Knows nothing of quality: see the kernels' tests.

    python benchmarks/attention_scaling.py [--quick] [--save]
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import json
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from lmworks.kernels.block_sparse_attention import (
    bigbird_layout,
    block_sparse_attention,
    block_sparse_attention_reference,
    longformer_layout,
)
from lmworks.kernels.flash_attention_reference import flash_attention_reference
from lmworks.kernels.linear_attention import (
    elu_features,
    favor_features,
    linear_attention,
    linformer_attention,
    orthogonal_projection,
)
from lmworks.kernels.lsh_attention import lsh_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
synchronize = torch.cuda.synchronize if DEVICE.type == "cuda" else torch.cpu.synchronize
HEADS, HEAD_DIM = 2, 64
SCALE = HEAD_DIM**-0.5
QUICK, FULL = (256, 512, 1024, 2048), (512, 1024, 2048, 4096, 8192)
FITTED = 3
"""Exponents are fitted to the longest lengths, where fixed costs have faded."""
PEER = "torch scaled_dot_product_attention"
RESULTS = Path(__file__).parent / "results"


def cases(n: int) -> dict[str, Callable[..., Tensor]]:
    """Every attention at length `n`; layouts and projections are made here, once, as a model would."""
    cu_seqlens = torch.tensor([0, n], dtype=torch.int32, device=DEVICE)
    full, first = torch.ones(n, n, dtype=torch.bool, device=DEVICE), torch.arange(n, device=DEVICE) == 0
    window = longformer_layout(cu_seqlens, window=128, is_global=first, block_size=64)
    bigbird = bigbird_layout(cu_seqlens, block_size=64, num_random_blocks=3)
    random_features = orthogonal_projection(128, HEAD_DIM).to(DEVICE)
    mixtures = torch.randn(128, n, device=DEVICE) / math.sqrt(n)
    bits = max((2 * n // 64).bit_length() - 1, 2)  # about 2 n / chunk_length buckets, hashed by two parts
    buckets = (2 ** (bits // 2), 2 ** (bits - bits // 2))

    def fused(*qkv: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*(t.transpose(0, 1)[None] for t in qkv), scale=SCALE)

    def elu(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        return linear_attention(elu_features(q), elu_features(k), v, cu_seqlens, causal=causal)

    def performer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        features = partial(favor_features, projection=random_features, scale=SCALE)
        return linear_attention(features(q, is_query=True), features(k, is_query=False), v, cu_seqlens, causal=False)

    packed = {"cu_seqlens": cu_seqlens, "scale": SCALE}
    hashing = {"num_buckets": buckets, "num_hashes": 2, "chunk_length": 64, "causal": False}
    tiles = {"query_tile": 256, "key_tile": 256, "causal": False}
    return {
        PEER: fused,
        "formula": partial(block_sparse_attention_reference, mask=full, scale=SCALE),
        "FlashAttention reference, tiles of 256": partial(flash_attention_reference, **packed, **tiles),
        "Longformer, window ±128, 1 global token": partial(block_sparse_attention, layout=window, scale=SCALE),
        "BigBird, blocks of 64, 3 random": partial(block_sparse_attention, layout=bigbird, scale=SCALE),
        "Reformer LSH, chunks of 64, 2 rounds": lambda q, _, v: lsh_attention(q, v, **packed, **hashing),
        "linear, elu + 1": partial(elu, causal=False),
        "linear, elu + 1, causal": partial(elu, causal=True),
        "Performer, 128 features": performer,
        "Linformer, k = 128": partial(
            linformer_attention, **packed, key_projection=mixtures, value_projection=mixtures
        ),
    }


def once(attention: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """One forward and one backward pass."""
    out = attention(*inputs)
    torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    gc.collect()
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes held at once during one call, beyond those held before."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        call()
    events = measured.profiler.kineto_results.events()
    return max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


def flops(call: Callable[[], object]) -> int:
    """Multiplications and additions of the matrix products in one call, recomputed ones included."""
    aten = torch.ops.aten  # the counter knows the CUDA kernels alone
    on_cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *s, **_: sdpa_backward_flop_count(*s[:4]),
    }
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        call()
    return counter.get_total_flops()


def exponent(series: dict[int, float]) -> float:
    """Slope of log(value) over log(length), by least squares on the longest lengths."""
    points = [(math.log(n), math.log(value)) for n, value in sorted(series.items())[-FITTED:]]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def spread(samples: list[float]) -> float:
    """Distance of the quartiles as a share of the median."""
    low, middle, high = statistics.quantiles(samples, n=4)
    return (high - low) / middle


def measure(lengths: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Rows of the report: time and memory of every case at the longest length, with the series behind them."""
    generator = torch.Generator().manual_seed(0)
    calls: dict[str, dict[int, Callable[[], None]]] = {}
    for n in lengths:
        inputs = [torch.randn(n, HEADS, HEAD_DIM, generator=generator).to(DEVICE).requires_grad_() for _ in range(3)]
        for name, attention in cases(n).items():
            calls.setdefault(name, {})[n] = partial(once, attention, inputs)
    a, b = torch.randn(2, 1024, 1024, device=DEVICE)
    product: list[float] = []
    times: dict[str, dict[int, list[float]]] = {name: {n: [] for n in lengths} for name in calls}
    for _ in range(rounds):
        product += [seconds(lambda: torch.mm(a, b)) for _ in range(3)]
        for n in lengths:
            for name, by_length in calls.items():
                times[name][n].append(seconds(by_length[n]))
    limit = 2 * 1024**3 / min(product)  # FLOP/s of one large matrix product on this machine, in this run

    longest, rows = lengths[-1], []
    for name, by_length in calls.items():
        elapsed = {n: statistics.median(samples) * 1e3 for n, samples in times[name].items()}
        memory = {n: peak_bytes(call) / 2**20 for n, call in by_length.items()}
        share = flops(by_length[longest]) / (elapsed[longest] / 1e3) / limit
        theirs = (rows[0]["ours"], rows[1]["ours"]) if rows else (elapsed[longest], memory[longest])
        rows.append(_row(f"{name}: time", "ms", elapsed, theirs[0], spread(times[name][longest]), round(share, 3)))
        rows.append(_row(f"{name}: peak memory", "MiB", memory, theirs[1], 0.0, None))
    return rows


def _row(
    case: str, unit: str, series: dict[int, float], theirs: float, spread: float, limit_share: float | None
) -> dict[str, Any]:
    ours = series[max(series)]
    return {
        "case": f"{case}, {max(series)} tokens",
        "ours": round(ours, 3),
        "unit": unit,
        "peer": PEER,
        "theirs": round(theirs, 3),
        "ratio": round(ours / theirs, 4),
        "spread": round(spread, 3),
        "limit_share": limit_share,
        "exponent": round(exponent(series), 2),
        "by_length": {n: round(value, 3) for n, value in series.items()},
    }


def show(rows: list[dict[str, Any]], lengths: tuple[int, ...]) -> None:
    """Print one table per quantity."""
    for unit, title in (("ms", "forward + backward, ms (median)"), ("MiB", "peak memory beyond the inputs, MiB")):
        timed = ("spread", "of matmul limit") if unit == "ms" else ()
        table = Table("attention", *(str(n) for n in lengths), "exponent", "× fused", *timed, title=title)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in (row for row in rows if row["unit"] == unit):
            values = [f"{v:.1f}" for v in row["by_length"].values()]
            values += [f"{row['exponent']:.2f}", f"{row['ratio']:.2f}"]
            values += [f"{row['spread']:.0%}", f"{row['limit_share']:.0%}"] if timed else []
            table.add_row(row["case"].split(":")[0], *values)
        Console(width=150).print(table)


def main() -> None:
    """Measure, show, and print the report as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="shorter documents and fewer rounds: under a minute")
    parser.add_argument("--save", action="store_true", help="also write a dated file into benchmarks/results")
    options = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler reports itself on stderr at every use
    lengths, rounds = (QUICK, 3) if options.quick else (FULL, 5)
    rows = measure(lengths, rounds)
    show(rows, lengths)
    git = ("git", "-C", str(RESULTS.parent), "rev-parse", "--short", "HEAD")
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    report = {"benchmark": "attention_scaling", "commit": commit, "hardware": hardware(), "rows": rows}
    if options.save:
        path = RESULTS / f"{datetime.datetime.now(datetime.UTC).date()}-attention-scaling.json"
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(report, ensure_ascii=False))


def hardware() -> str:
    """Device, threads and torch in words."""
    if DEVICE.type == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return f"{[*names, platform.machine()][0]}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


if __name__ == "__main__":
    main()
