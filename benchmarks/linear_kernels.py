"""Products with packed weights against torch's of the same number of bits, in turn, from memory and from caches.

A rate's limit is the smaller of two: weights times the bandwidth probed in the same run, and the multiplications that
one core's registers do, probed likewise. Weights are copies larger than the caches together, used in turn, as the
layers of a model are. Knows nothing of models: see `engine_decode.py` for whole steps.

    python benchmarks/linear_kernels.py [--quick] [--save]
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from interleaved import finish, row
from torch import Tensor
from torch.nn import functional as F

from lmworks.kernels.machine import read_bandwidth, set_threads
from lmworks.kernels.native.library import COMMON_FLAGS, FLAGS, isa
from lmworks.kernels.native.memory import weight_memory
from lmworks.kernels.packed_matmul import PackedWeight, pack_grid, pack_weight, packed_matmul

GROUP = 32
SHAPES = ((576, 576), (1536, 576), (576, 1536), (49152, 576), (4096, 4096))
QUICK_SHAPES = ((1536, 576), (2048, 2048))
ROWS, QUICK_ROWS = (1, 8, 32, 512), (1, 8, 512)
CACHES = 96 * 2**20
"""Bytes of weights that no cache holds."""
CHUNK_SECONDS = 0.01
"""Of calls between two readings of the clock."""
FEW_ROUNDS = 3

REGISTER_LOOPS = r"""
#include <immintrin.h>
#include <chrono>
template <typename V, typename F> double rate(V sum, double operations, F step) {
    double best = 0;
    for (int round = 0; round < 5; ++round) {
        V sums[16];
        for (V& s : sums) s = sum;
        const auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < 400000; ++i) {
            _Pragma("GCC unroll 16") for (int j = 0; j < 16; ++j) {
                sums[j] = step(sums[j]);
                asm volatile("" : "+v"(sums[j]));
            }
        }
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        const double now = 400000 * 16 * operations / seconds;
        best = now > best ? now : best;
    }
    return best;
}
extern "C" void register_rates(double* rates) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512i bytes = _mm512_set1_epi8(3), halves = _mm512_set1_epi16(0x3f80);
    rates[0] = rate(one, 32, [=](__m512 s) { return _mm512_fmadd_ps(one, one, s); });
    rates[1] = rate(one, 64, [=](__m512 s) { return _mm512_dpbf16_ps(s, (__m512bh)halves, (__m512bh)halves); });
    rates[2] = rate(bytes, 128, [=](__m512i s) { return _mm512_dpbusd_epi32(s, bytes, bytes); });
}
"""

Product = Callable[[Tensor], Tensor]


def register_rates() -> dict[str, float] | None:
    """Operations a second (a multiplication and an addition are two) of one core at float32, bfloat16 and int8."""
    if isa() != "avx512":
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "rates.cpp", Path(folder) / "rates.so"
        source.write_text(REGISTER_LOOPS, encoding="utf-8")
        flags = (*COMMON_FLAGS, *FLAGS["avx512"], "-shared")
        subprocess.run(["g++", *flags, str(source), "-o", str(made)], check=True, capture_output=True)
        rates = (ctypes.c_double * 3)()
        ctypes.CDLL(str(made)).register_rates(rates)
    return {"f32": rates[0], "bf16": rates[1], "int": rates[2]}


def contestants(out: int, columns: int) -> Iterator[tuple[str, str, PackedWeight, str, Product, Tensor]]:
    """Our kinds of weights, each with what torch has of it.

    Yields:
        name, class of arithmetic, packed weight, peer's name, peer's product from its weight, peer's weight.
    """
    dense = torch.randn(out, columns)
    yield "f32", "f32", pack_weight(dense), "F.linear float32", F.linear, dense
    half = dense.bfloat16()
    yield "bf16", "bf16", pack_weight(half), "F.linear bfloat16", _narrow(F.linear), half
    eight = torch.randint(-127, 128, (out, columns), dtype=torch.int8)
    scale = torch.rand(out) / 100

    def int_mm(x: Tensor, weight: Tensor) -> Tensor:
        """The bare product of integers, without rounding activations and without scales."""
        return torch._int_mm(x.to(torch.int8), weight.t())

    yield "w8", "int", pack_grid(eight, scale[:, None], None, 8, 0), "torch._int_mm", int_mm, eight
    groups = (torch.rand(out, columns // GROUP) / 100).half().float()
    narrow_scale = scale.bfloat16()
    int8pack = _narrow(lambda x, weight: torch._weight_int8pack_mm(x, weight, narrow_scale))
    yield "w8g", "int", pack_grid(eight, groups, None, 8, GROUP), "torch._weight_int8pack_mm", int8pack, eight
    four = torch.randint(0, 16, (out, columns), dtype=torch.uint8)
    scale_and_zero = torch.stack([groups.t(), torch.zeros_like(groups.t())], -1).bfloat16().contiguous()
    theirs = torch._convert_weight_to_int4pack_for_cpu(four.int(), 1)
    int4pack = _narrow(lambda x, weight: torch._weight_int4pack_mm_for_cpu(x, weight, GROUP, scale_and_zero))
    yield "w4g", "int", pack_grid(four, groups, None, 4, GROUP), "torch._weight_int4pack_mm_for_cpu", int4pack, theirs


def _narrow(product: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, weight: product(x.bfloat16(), weight)


def copies(weight: Tensor) -> list[Tensor]:
    """The weight as often as fills more than the caches, in memory of the same kind for all contestants."""
    made = []
    for _ in range(max(1, CACHES // (weight.numel() * weight.element_size()))):
        memory = weight_memory(weight.numel() * weight.element_size()).view(weight.dtype).view(weight.shape)
        made.append(memory.copy_(weight))
    return made


def timed(call: Callable[[], object], calls: int) -> float:
    """Seconds of one call, over a number of them."""
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls


def in_turn(calls: list[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Seconds per call of each, from rounds in which they take turns."""
    lengths = [max(1, int(CHUNK_SECONDS / max(timed(call, 2), 1e-6))) for call in calls]
    samples: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples[0]) < FEW_ROUNDS:
        for call, length, times in zip(calls, lengths, samples, strict=True):
            times.append(timed(call, length))
    return samples


def measure(shapes: tuple[tuple[int, int], ...], rows: tuple[int, ...], seconds: float) -> Iterator[dict[str, Any]]:
    """A row of the report for every shape, kind, number of rows and of threads."""
    rates = register_rates()
    for out, columns in shapes:
        for name, arithmetic, packed, peer, product, weight in contestants(out, columns):
            ours = itertools.cycle([replace(packed, packed=memory) for memory in copies(packed.packed)])
            theirs = itertools.cycle(copies(weight))
            for threads, count in itertools.product((1, 2), rows):
                set_threads(threads)
                torch.set_num_threads(threads)
                x = torch.randn(count, columns)
                mine, other = in_turn(
                    [lambda x=x, w=ours: packed_matmul(x, next(w)), lambda x=x, w=theirs, p=product: p(x, next(w))],
                    seconds,
                )
                operations = 2 * count * out * columns
                limit = operations / (packed.packed.numel() / read_bandwidth(CACHES, rounds=3))
                if rates is not None:
                    limit = min(limit, threads * rates[arithmetic])
                told = row(
                    f"{name} {out}x{columns}, {count} rows, {threads} threads",
                    [operations / t / 1e9 for t in mine], "GFLOP/s", {peer: [operations / t / 1e9 for t in other]},
                    operations / statistics.median(mine) / limit,
                )  # fmt: skip
                yield told | {
                    "fastest_us": round(min(mine) * 1e6, 1),
                    "fastest_peer_us": round(min(other) * 1e6, 1),
                    "fastest_gigabytes_per_second": round(packed.packed.numel() / min(mine) / 1e9, 1),
                }


def main() -> None:
    """Measure, show, and print the report as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds, under a minute")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    options = parser.parse_args()
    torch.manual_seed(0)
    with torch.inference_mode():
        shapes, rows = (QUICK_SHAPES, QUICK_ROWS) if options.quick else (SHAPES, ROWS)
        finish("linear_kernels", list(measure(shapes, rows, 0.1 if options.quick else 0.6)), save=options.save)


if __name__ == "__main__":
    main()
