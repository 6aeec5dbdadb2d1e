"""The native attention over a paged cache as torch operations, and which rules of scores it has.

`lmworks::paged_attention` and `lmworks::write_cache` call C++ (`native/attention.h`) on a CPU and Triton kernels
(`triton/paged_attention.py`) on a GPU; where no compiler was found, they are there but cannot run. Knows no scheduler
and no model.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lmworks.kernels.masks import And, Causal, Full, Mask, Window
from lmworks.kernels.native.library import library
from lmworks.kernels.paged_step import SCALE_BYTES, PagedStep
from lmworks.kernels.program import CACHE_TYPES, CacheStruct, RuleStruct
from lmworks.kernels.scores import DistanceBias, Scores
from lmworks.kernels.triton import launching


@dataclass(frozen=True)
class NativeRule:
    """A rule of scores in the numbers of `lm::ScoreRule`."""

    scale: float
    softcap: float
    window: int
    causal: bool
    sinks: Tensor | None
    slopes: Tensor | None


def native_rule(scores: Scores) -> NativeRule | str:
    """The rule in native numbers, or in words what of it there is no native code for."""
    seen = _window(scores.mask)
    if seen is None:
        return f"no native code for the mask {scores.mask}"
    slopes = None
    if scores.bias is not None:
        if not isinstance(scores.bias, DistanceBias) or isinstance(scores.mask, Full):
            return "no native code for this bias"
        slopes = scores.bias.slopes.float().contiguous()
    sinks = None if scores.sinks is None else scores.sinks.detach().float().contiguous()
    return NativeRule(scores.scale, scores.softcap or 0.0, seen, scores.mask.causal, sinks, slopes)


def _window(mask: Mask) -> int | None:
    """Places a query sees back from its own, 0 for all; None where a mask is not of that kind."""
    match mask:
        case Causal() | Full():
            return 0
        case And(Causal(), Window(size)) | And(Window(size), Causal()):
            return size
    return None


def holds_natively(cache: Tensor) -> bool:
    """Whether native code reads a cache of this shape, type and place."""
    if cache.shape[0] != 2:
        return False
    if cache.is_cuda:
        return cache.dtype in launching.TYPES and cache.shape[-1] <= launching.MOST_WIDTH and launching.available()
    return cache.device.type == "cpu" and cache.dtype in CACHE_TYPES and library() is not None


def native_attention(query: Tensor, cache: Tensor, step: PagedStep, rule: NativeRule) -> Tensor:
    """Attention of one step's tokens [N, H, D]; a query's result is the same bits in any step. Returns [N, H, D]."""
    tables, shares = step.on(cache.device, causal=rule.causal)
    result: Tensor = torch.ops.lmworks.paged_attention(
        query, cache, tables, shares, rule.scale, rule.softcap, rule.window, rule.sinks, rule.slopes
    )
    return result


def native_write(cache: Tensor, key: Tensor, value: Tensor, step: PagedStep) -> None:
    """Store keys and values [N, K, D] of one step's tokens, in the cache's type."""
    torch.ops.lmworks.write_cache(cache, key, value, *step.on(cache.device, causal=True))


@cache
def _native() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None, "native attention is called only where there are native operations"
    number, stride, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    step = (pointer, number, pointer, number)
    loaded.lm_paged_attention.argtypes = (pointer, pointer, *step, pointer, stride, number, pointer, stride)
    loaded.lm_write_cache.argtypes = (pointer, *step, pointer, pointer, stride)
    loaded.lm_paged_attention.restype = loaded.lm_write_cache.restype = None
    return loaded


def _cache_struct(cache: Tensor) -> CacheStruct:
    assert cache.is_contiguous(), "a cache is one piece of memory"
    _, kv_heads, blocks, block_size, width = cache.shape
    head_dim = width - SCALE_BYTES if cache.dtype == torch.int8 else width
    return CacheStruct(cache.data_ptr(), CACHE_TYPES[cache.dtype], kv_heads, blocks, block_size, head_dim)


def _rows(tensor: Tensor) -> Tensor:
    """[N, H, D] floats whose tokens may lie apart, but not what is inside of one."""
    tensor = tensor.float()
    return tensor if tensor[0].is_contiguous() else tensor.contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


_OPERATIONS = torch.library.Library("lmworks", "FRAGMENT")
_OPERATIONS.define(
    "paged_attention(Tensor query, Tensor cache, Tensor block_tables, Tensor shares, float scale, float softcap, "
    "int window, Tensor? sinks, Tensor? slopes) -> Tensor"
)
_OPERATIONS.define("write_cache(Tensor(a!) cache, Tensor key, Tensor value, Tensor block_tables, Tensor shares) -> ()")


@torch.library.impl(_OPERATIONS, "paged_attention", "CPU")
def _paged_attention(
    query: Tensor, cache: Tensor, block_tables: Tensor, shares: Tensor, scale: float, softcap: float, window: int,
    sinks: Tensor | None, slopes: Tensor | None,
) -> Tensor:  # fmt: skip
    rows = _rows(query)
    out = torch.empty(query.shape)
    _native().lm_paged_attention(
        ctypes.byref(_cache_struct(cache)),
        ctypes.byref(RuleStruct(scale, softcap, window, _address(sinks), _address(slopes))),
        block_tables.data_ptr(), block_tables.shape[1], shares.data_ptr(), shares.shape[0],
        rows.data_ptr(), rows.stride(0), query.shape[1], out.data_ptr(), out.stride(0),
    )  # fmt: skip
    return out.to(query.dtype)


@torch.library.impl(_OPERATIONS, "paged_attention", "CUDA")
def _paged_attention_on_gpu(
    query: Tensor, cache: Tensor, block_tables: Tensor, shares: Tensor, scale: float, softcap: float, window: int,
    sinks: Tensor | None, slopes: Tensor | None,
) -> Tensor:  # fmt: skip
    from lmworks.kernels.triton.paged_attention import paged_attention

    return paged_attention(query, cache, block_tables, shares, scale, softcap, window, sinks, slopes)


@torch.library.register_fake("lmworks::paged_attention")  # type: ignore[untyped-decorator]
def _fake_paged_attention(
    query: Tensor, cache: Tensor, block_tables: Tensor, shares: Tensor, scale: float, softcap: float, window: int,
    sinks: Tensor | None, slopes: Tensor | None,
) -> Tensor:  # fmt: skip
    return query.new_empty(query.shape)


@torch.library.impl(_OPERATIONS, "write_cache", "CPU")
def _write_cache(cache: Tensor, key: Tensor, value: Tensor, block_tables: Tensor, shares: Tensor) -> None:
    keys, values = _rows(key), _rows(value)
    if keys.stride(0) != values.stride(0):
        keys, values = keys.contiguous(), values.contiguous()
    _native().lm_write_cache(
        ctypes.byref(_cache_struct(cache)),
        block_tables.data_ptr(), block_tables.shape[1], shares.data_ptr(), shares.shape[0],
        keys.data_ptr(), values.data_ptr(), keys.stride(0),
    )  # fmt: skip


@torch.library.impl(_OPERATIONS, "write_cache", "CUDA")
def _write_cache_on_gpu(cache: Tensor, key: Tensor, value: Tensor, block_tables: Tensor, shares: Tensor) -> None:
    from lmworks.kernels.triton.paged_attention import write_cache

    write_cache(cache, key, value, block_tables, shares)


@torch.library.register_fake("lmworks::write_cache")  # type: ignore[untyped-decorator]
def _fake_write_cache(cache: Tensor, key: Tensor, value: Tensor, block_tables: Tensor, shares: Tensor) -> None:
    return None
