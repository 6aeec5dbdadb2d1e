"""Native operations of training, a library of its own. Knows no operation of serving.

They work on bfloat16 and need a processor with AVX-512 BF16. Elsewhere, and for whatever they do not cover, PyTorch's
operations do the same. The threads are those of torch (see `team.h`).
"""

from __future__ import annotations

import ctypes
import logging
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmworks.kernels.native.library import isa, library

logger = logging.getLogger(__name__)

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "lm_causal_attention": (*(c_void_p, c_int64) * 3, c_void_p, *(c_int,) * 4, c_float, c_void_p, c_void_p),
    "lm_causal_attention_backward": (
        *(c_void_p, c_int64) * 4, *(c_void_p,) * 3, *(c_int,) * 4, c_float, *(c_void_p,) * 3,
    ),
    "lm_rms_norm": (c_void_p, c_void_p, c_int64, c_int64, c_float, c_void_p, c_void_p),
    "lm_rms_norm_backward": (*(c_void_p,) * 4, c_int64, c_int64, c_void_p, c_void_p),
    "lm_silu_gated": (c_void_p, c_void_p, c_int64, c_void_p),
    "lm_silu_gated_backward": (*(c_void_p,) * 3, c_int64, c_void_p, c_void_p),
    "lm_rotate": (c_void_p, c_int64, c_void_p, c_void_p, *(c_int64,) * 4, c_float, c_void_p),
    "lm_cross_entropy": (*(c_void_p,) * 3, c_int64, c_int64, c_float, c_float, c_int, c_void_p),
}  # fmt: skip


@cache
def training_library() -> ctypes.CDLL | None:
    """The operations, with their signatures declared; None where they cannot be had."""
    loaded = library("training") if isa() == "avx512" else None
    if loaded is None:
        return None
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    loaded.lm_team_library.argtypes, loaded.lm_team_library.restype = (c_void_p,), None
    loaded.lm_team_library(_parallel_region())
    return loaded


def _parallel_region() -> int | None:
    """Address of the entry of the OpenMP library that torch's operations use; None where it is another than GCC's."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))
    try:  # a handle's symbols include those of what it depends on
        return ctypes.cast(ctypes.CDLL(str(found[0])).GOMP_parallel, c_void_p).value
    except (OSError, AttributeError, IndexError):
        logger.warning("native operations of training: torch's threads were not found, they take one thread")
        return None


def trains_natively(*tensors: Tensor) -> bool:
    """Whether all are plain bfloat16 tensors on a CPU that has the operations, and no compiler is to fuse what is."""
    return (
        all(type(t) in (Tensor, torch.nn.Parameter) and t.dtype == torch.bfloat16 for t in tensors)
        and all(t.device.type == "cpu" for t in tensors)
        and not torch.compiler.is_compiling()
        and training_library() is not None
    )


def call(name: str, *arguments: Any) -> None:
    """Run an operation on as many threads as torch uses; tensors are given by their address."""
    loaded = training_library()
    assert loaded is not None, "called only where `trains_natively`"
    loaded.lm_team_threads(torch.get_num_threads())
    getattr(loaded, name)(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))
