"""Programs of native instructions: what `native/program.h` runs, described from Python. Knows no model.

The structures mirror those of the header; their sizes are compared when the first program is made.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

import torch
from torch import Tensor

from lmworks.kernels.low_rank import LowRank, LowRankStruct
from lmworks.kernels.native.library import library


class Op(IntEnum):
    """See `native/program.h`."""

    EMBED = 0
    ADD_TABLE = 1
    NORM = 2
    LINEAR = 3
    LINEAR_ADD = 4
    GATED = 5
    ROTATE_STORE = 6
    ATTEND = 7
    ADD = 8
    SELECT = 9
    SOFTCAP = 10
    SCALE = 11


ACTIVATIONS = ("none", "silu", "gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2")
"""Names by the header's numbers."""
NORMS = ("rms", "layer")
CACHE_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class LinearStruct(Structure):
    """`lm::Linear`."""

    _fields_ = (
        ("kind", c_int32), ("out_features", c_int32), ("in_features", c_int32), ("group", c_int32),
        ("packed", c_void_p), ("bias", c_void_p),
    )  # fmt: skip


class RuleStruct(Structure):
    """`lm::ScoreRule`."""

    _fields_ = (
        ("scale", c_float), ("softcap", c_float), ("window", c_int32), ("sinks", c_void_p), ("slopes", c_void_p),
    )  # fmt: skip


class InstructionStruct(Structure):
    """`lm::Instruction`."""

    _fields_ = (
        ("op", c_int32), ("input", c_int32), ("output", c_int32),
        ("width", c_int32), ("count", c_int32), ("activation", c_int32), ("norm", c_int32),
        ("number", c_float), ("eps", c_float),
        ("table", c_void_p), ("table_type", c_int32),
        ("weight", c_void_p), ("bias", c_void_p), ("vector", c_void_p),
        ("num_linears", c_int32), ("linears", LinearStruct * 3), ("offsets", c_int32 * 3), ("sites", c_int32 * 3),
        ("layer", c_int32), ("heads", c_int32), ("kv_heads", c_int32), ("head_dim", c_int32),
        ("rule", RuleStruct), ("rotary", c_int32),
        ("query_norm", c_void_p), ("key_norm", c_void_p), ("norm_all", c_int32),
    )  # fmt: skip


class CacheStruct(Structure):
    """`lm::Cache`."""

    _fields_ = (
        ("data", c_void_p), ("type", c_int32), ("kv_heads", c_int32), ("blocks", c_int32), ("block_size", c_int32),
        ("head_dim", c_int32),
    )  # fmt: skip


class RotaryStruct(Structure):
    """`lm::Rotary`."""

    _fields_ = (
        ("cos", c_void_p), ("sin", c_void_p), ("size", c_int32), ("interleaved", c_int32), ("by_row", c_int32),
    )  # fmt: skip


class StepStruct(Structure):
    """`lm::Step`."""

    _fields_ = (
        ("rows", c_int32), ("num_sequences", c_int32), ("num_selected", c_int32),
        ("tokens", c_void_p), ("positions", c_void_p), ("sequences", c_void_p), ("selected", c_void_p),
        ("result", c_void_p), ("chosen", c_void_p), ("updates", c_void_p), ("max_rank", c_int32),
    )  # fmt: skip


STEP_SEQUENCE = Struct("@Piii4x")
"""`lm::StepSequence`: block table, start, length, row."""


class UpdateSet:
    """Updates of low rank by site, as steps refer to them.

    Args:
        updates: of every site; None changes nothing.
    """

    def __init__(self, updates: Sequence[LowRank | None]) -> None:
        self._keep = updates
        self._structs = (LowRankStruct * len(updates))(*(LowRankStruct() if u is None else u.struct() for u in updates))
        self.address = ctypes.addressof(self._structs)
        self.max_rank = max((len(u.down) for u in updates if u is not None), default=0)


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines, [positions, R] float32."""

    cos: Tensor
    sin: Tensor
    interleaved: bool
    by_row: bool = False
    """The tables have a row for every token of the step instead of one for every position."""

    def struct(self) -> RotaryStruct:
        """For the native side; the tensors must outlive it."""
        return RotaryStruct(
            self.cos.data_ptr(), self.sin.data_ptr(), self.cos.shape[-1], self.interleaved, self.by_row
        )  # fmt: skip


class Program:
    """A compiled sequence of instructions.

    Args:
        instructions: in order; the last one's output is the result.
        buffer_widths: numbers a row of each buffer holds.
        caches: [2, K, blocks, block_size, D] of each layer, contiguous.
        keep: all tensors whose memory instructions point to.
    """

    def __init__(
        self, instructions: Sequence[InstructionStruct], buffer_widths: Sequence[int], caches: Sequence[Tensor],
        keep: Sequence[Tensor],
    ) -> None:  # fmt: skip
        loaded = library()
        assert loaded is not None, "programs are made where the native operations are"
        self._library = _declare(loaded)
        self._keep = [*keep, *caches]
        self._result_width = buffer_widths[instructions[-1].output]
        structs = (CacheStruct * len(caches))(*map(_cache_struct, caches))
        self._handle = loaded.lm_program_new(
            (InstructionStruct * len(instructions))(*instructions), len(instructions),
            (c_int32 * len(buffer_widths))(*buffer_widths), len(buffer_widths), structs, len(caches),
        )  # fmt: skip

    def set_rotaries(self, tables: Sequence[RotaryTable]) -> None:
        """Give the tables that instructions name by index."""
        self._rotaries = tables
        structs = (RotaryStruct * len(tables))(*(table.struct() for table in tables))
        self._library.lm_program_set_rotary(self._handle, structs, len(tables))

    def run(
        self, tokens: array[int], positions: array[int], sequences: Sequence[tuple[int, int, int, int]],
        selected: array[int], sets: Sequence[UpdateSet] = (), chosen: array[int] | None = None,
    ) -> Tensor:  # fmt: skip
        """Run one step.

        Args:
            tokens: [N] ids.
            positions: [N].
            sequences: address of the int32 block table, start, length and first row of each.
            selected: rows whose result is wanted, ascending.
            sets: updates of low rank that rows get.
            chosen: [N] number of each row's set, -1 for none; None where no row has one.

        Returns:
            [len(selected), width of the last buffer] float32.
        """
        packed = bytearray(STEP_SEQUENCE.size * len(sequences))
        for i, sequence in enumerate(sequences):
            STEP_SEQUENCE.pack_into(packed, i * STEP_SEQUENCE.size, *sequence)
        result = torch.empty(len(selected), self._result_width)
        addresses = (c_void_p * len(sets))(*(updates.address for updates in sets))
        step = StepStruct(
            len(tokens), len(sequences), len(selected), tokens.buffer_info()[0], positions.buffer_info()[0],
            ctypes.addressof(ctypes.c_char.from_buffer(packed)), selected.buffer_info()[0], result.data_ptr(),
            None if chosen is None else chosen.buffer_info()[0], ctypes.addressof(addresses),
            max((updates.max_rank for updates in sets), default=0),
        )  # fmt: skip
        self._library.lm_program_run(self._handle, step)
        return result

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._library.lm_program_free(self._handle)


def _cache_struct(cache: Tensor) -> CacheStruct:
    planes, kv_heads, blocks, block_size, width = cache.shape
    assert planes == 2, "programs attend over keys and values"
    head_dim = width - 4 if cache.dtype == torch.int8 else width
    return CacheStruct(cache.data_ptr(), CACHE_TYPES[cache.dtype], kv_heads, blocks, block_size, head_dim)


def _declare(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the signatures, and compare the sizes of structures."""
    loaded.lm_program_new.restype = c_void_p
    loaded.lm_program_new.argtypes = [c_void_p, c_int32, c_void_p, c_int32, c_void_p, c_int32]
    loaded.lm_program_set_rotary.argtypes = [c_void_p, c_void_p, c_int32]
    loaded.lm_program_set_rotary.restype = None
    loaded.lm_program_run.argtypes = [c_void_p, POINTER(StepStruct)]
    loaded.lm_program_run.restype = None
    loaded.lm_program_free.argtypes = [c_void_p]
    loaded.lm_program_free.restype = None
    theirs = (c_int32 * 16)()
    count = loaded.lm_program_sizes(theirs)
    structs = (InstructionStruct, StepStruct, CacheStruct, RotaryStruct, None, LinearStruct, RuleStruct, LowRankStruct)
    ours = [STEP_SEQUENCE.size if s is None else ctypes.sizeof(s) for s in structs]
    assert list(theirs[:count]) == ours, f"structures differ in size: {list(theirs[:count])} and {ours}"
    return loaded
