"""Native attention over a paged cache against what PyTorch has, decoding and prefilling, in turn.

The peers are `batched`, our products of gathered blocks in PyTorch, on the same cache, and
`scaled_dot_product_attention` with `enable_gqa`, on keys and values that already lie dense and need no gathering. The
limit of decoding is the bandwidth that is probed in the same run, that of a prefill the rate of one large product in
bfloat16. There are so many caches that none is in the processor's when its turn comes, as with the layers of a model.
Native code is called as the engine's programs call it, without torch; the same through its torch operation is told
as `fastest_us, operation`.

    python benchmarks/attention_decode.py [--quick] [--save]
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from interleaved import finish, row
from torch import Tensor
from torch.nn import functional as F

from lmworks.kernels.machine import read_bandwidth, set_threads
from lmworks.kernels.native.library import library
from lmworks.kernels.native.memory import weight_memory
from lmworks.kernels.paged_attention import PagedAttention, PagedAttentionMethod
from lmworks.kernels.paged_step import PagedSequence, PagedStep
from lmworks.kernels.program import CACHE_TYPES, CacheStruct, RuleStruct
from lmworks.kernels.scores import Scores

BLOCK_SIZE = 16
CACHES = 96 * 2**20
"""Bytes of keys and values that no cache of a processor holds."""
FEW_ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """Sequences alike, in one layer."""

    batch: int
    keys: int
    new: int = 1
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64

    def __str__(self) -> str:
        what = "decode" if self.new == 1 else "prefill"
        return f"{what} {self.batch}x{self.keys}, {self.heads}/{self.kv_heads} heads of {self.head_dim}"

    @property
    def cache_bytes(self) -> int:
        """Of the keys and values that are read, in bfloat16."""
        return 2 * 2 * self.batch * self.keys * self.kv_heads * self.head_dim

    @property
    def operations(self) -> int:
        """Multiplications and additions of both products, over what the queries see."""
        seen = sum(range(self.keys - self.new + 1, self.keys + 1))
        return 4 * self.batch * seen * self.heads * self.head_dim


FULL = (
    *(Case(batch, keys) for batch in (1, 32) for keys in (200, 1000, 4000)),
    Case(4, 1024, heads=16, kv_heads=8, head_dim=128),
    Case(1, 512, new=512),
    Case(1, 4096, new=4096),
    Case(1, 512, new=512, heads=16, kv_heads=8, head_dim=128),
)
QUICK = (Case(1, 200), Case(1, 1000), Case(8, 1000), Case(1, 512, new=512))


def in_huge_pages(tensor: Tensor) -> Tensor:
    """A copy in memory as the engine's caches have it, for all contestants alike."""
    return weight_memory(tensor.numel() * tensor.element_size()).view(tensor.dtype).view(tensor.shape).copy_(tensor)


def contestants(case: Case, *, scattered: bool) -> dict[str, Callable[[], object]]:
    """One call of each, on its next cache."""
    blocks = -(-case.keys // BLOCK_SIZE)
    order = torch.arange(blocks * case.batch)
    if scattered:
        order = order[torch.randperm(len(order))]
    tables = order.view(case.batch, blocks).tolist()
    query = torch.randn(case.batch * case.new, case.heads, case.head_dim).bfloat16()
    paged, dense = [], []
    for _ in range(max(1, CACHES // case.cache_bytes)):
        cache = torch.randn(2, case.kv_heads, case.batch * blocks, BLOCK_SIZE, case.head_dim).bfloat16()
        paged.append(in_huge_pages(cache))
        # [2, K, B, keys, D] -> [2, B, K, keys, D]
        rows = cache[:, :, order].view(2, case.kv_heads, case.batch, -1, case.head_dim)[:, :, :, : case.keys]
        dense.append(in_huge_pages(rows.transpose(1, 2).contiguous()))
    caches, pairs = itertools.cycle(paged), itertools.cycle(dense)
    step = PagedStep([PagedSequence(table, case.keys - case.new, case.new) for table in tables])
    scores = Scores(case.head_dim**-0.5)
    heads_first = query.view(case.batch, case.new, case.heads, case.head_dim).transpose(1, 2)

    def by(method: PagedAttentionMethod) -> Callable[[], object]:
        attention = PagedAttention(step, method)
        return lambda: attention(query, next(caches), scores)

    def fused() -> Tensor:
        key, value = next(pairs)
        return F.scaled_dot_product_attention(heads_first, key, value, is_causal=case.new > 1, enable_gqa=True)

    calls = {"native": native_call(query, paged, step, scores), "operation": by("native"), "batched": by("batched")}
    return calls | {"SDPA, enable_gqa": fused}


def native_call(query: Tensor, paged: list[Tensor], step: PagedStep, scores: Scores) -> Callable[[], object]:
    """The native function with its arguments made ready, on the next cache at every call."""
    native, kind = library(), CACHE_TYPES[paged[0].dtype]
    assert native is not None, "this benchmark needs a compiler"
    pointers = [CacheStruct(cache.data_ptr(), kind, *cache.shape[1:]) for cache in paged]
    structs = itertools.cycle([ctypes.byref(pointer) for pointer in pointers])
    floats, out = query.float(), torch.empty(query.shape)
    rule = RuleStruct(scores.scale, 0.0, 0, None, None)
    tables, shares = step.block_tables, step.causal_shares
    width, address, stride = query.shape[1] * query.shape[2], ctypes.c_void_p, ctypes.c_int64
    arguments = (
        ctypes.byref(rule), address(tables.data_ptr()), tables.shape[1], address(shares.data_ptr()), len(step),
        address(floats.data_ptr()), stride(width), query.shape[1], address(out.data_ptr()), stride(width),
    )  # fmt: skip

    def call(_alive: object = (pointers, floats, out, rule, tables, shares)) -> None:
        native.lm_paged_attention(next(structs), *arguments)

    return call


def in_turn(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of single calls, from rounds in which they take turns."""
    for call in calls.values():
        call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples["native"]) < FEW_ROUNDS:
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - begin)
    return samples


def product_rate() -> float:
    """Operations a second of one large product in bfloat16, at its fastest."""
    a, times = torch.randn(768, 768).bfloat16(), []
    for _ in range(30):
        begin = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - begin)
    return 2 * 768**3 / min(times)


def measure(cases: tuple[Case, ...], seconds: float) -> Iterator[dict[str, Any]]:
    """A row of the report for every case and number of threads."""
    for case, threads in itertools.product(cases, (1, 2)):
        set_threads(threads)
        torch.set_num_threads(threads)
        for scattered in (False, True) if case.new == 1 else (False,):
            samples = in_turn(contestants(case, scattered=scattered), seconds)
            work, unit = (case.cache_bytes, "GB/s") if case.new == 1 else (case.operations, "GFLOP/s")
            limit = read_bandwidth(CACHES, rounds=3) if case.new == 1 else product_rate()
            rates = {name: [work / t / 1e9 for t in times] for name, times in samples.items()}
            mine = rates.pop("native")
            del rates["operation"]
            share = statistics.median(mine) * 1e9 / limit
            name = f"{case}, {threads} threads" + (", blocks scattered" if scattered else "")
            fastest = {f"fastest_us, {of}": round(min(times) * 1e6, 1) for of, times in samples.items()}
            yield row(name, mine, unit, rates, share) | fastest


def main() -> None:
    """Measure, show, and print the report as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds, under a minute")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    options = parser.parse_args()
    torch.manual_seed(0)
    with torch.inference_mode():
        cases, seconds = (QUICK, 0.3) if options.quick else (FULL, 2.0)
        finish("attention_decode", list(measure(cases, seconds)), save=options.save)


if __name__ == "__main__":
    main()
