"""Optimizer state in 8 bits: block-wise dynamic quantization (arXiv:2110.02861) around any optimizer's step.

A moment is kept as one byte an entry and one float32 for every 256; it is float32 only while its parameter is
updated. Knows no algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from lmworks.core.errors import ConfigError

BLOCK = 256
"""Entries that share a scale."""
SMALLEST = 4096
"""Entries below which a parameter's state stays float32: little to win, and norms and biases are touchy."""
SIGNED, UNSIGNED = ("exp_avg", "momentum_buffer"), ("exp_avg_sq",)
"""State that is quantized: moments of the shape of their parameter, and those of them that are never negative."""
ERROR_BOUND = {True: 0.9 / 128, False: 0.9 / 256}
"""Signed or not: the largest error of an entry as a share of its block's largest magnitude. That is half the
widest gap of the code; entries a tenth as large are kept nearly ten times as exactly, and so on for seven decades."""
DECADES = 7


class QuantizedState:
    """An optimizer whose moments are 8-bit between steps.

    Its `state` holds `<slot>_codes` (uint8, shape of the parameter) and `<slot>_scales` (float32, one a block)
    in the place of each moment.

    Args:
        optimizer: updates each parameter independently of the others, as all here do.

    Raises:
        ConfigError: a parameter is sharded; its blocks would span ranks.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        if any(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"]):
            raise ConfigError("state_bits 8 needs whole parameters, and these are sharded", "Set state_bits to 32")

    def step(self) -> None:
        """Update the parameters one at a time, so that one moment at a time is float32."""
        groups = self.optimizer.param_groups
        try:
            for group in groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        continue
                    state = self.optimizer.state[parameter]
                    _unpack(state, parameter)
                    self.optimizer.param_groups = [{**group, "params": [parameter]}]
                    self.optimizer.step()
                    _pack(state, parameter)
        finally:
            self.optimizer.param_groups = groups


def packed_slots(parameter: nn.Parameter, slots: frozenset[str]) -> frozenset[str]:
    """Names of the state of a parameter between steps, for an algorithm's `slots`."""
    if parameter.numel() < SMALLEST:
        return slots
    kept = [s for s in slots if s not in SIGNED and s not in UNSIGNED]
    packed = [f"{s}_{part}" for s in slots if s in SIGNED or s in UNSIGNED for part in ("codes", "scales")]
    return frozenset([*kept, *packed])


def quantize_blocks(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """To the nearest of 256 values times the largest magnitude of each block of 256 entries.

    Args:
        values: float32, any shape.
        signed: False for values that are never negative: a finer code, in which only 0 becomes 0, so that
            nothing is ever divided by the root of a second moment that was rounded away.

    Returns:
        codes uint8 of the same shape, scales float32 [blocks].
    """
    blocks, scales = _normalized_blocks(values)
    middles, lowest = (table.to(values.device) for table in _lookup(signed))
    flat = blocks.flatten()
    codes = lowest.index_select(0, (flat.view(torch.int32) >> 16) & 0xFFFF)
    codes = (codes + (flat > middles.index_select(0, codes))).view_as(blocks)
    if not signed:
        codes = torch.where(blocks > 0, codes.clamp(min=1), codes)
    return codes.to(torch.uint8).flatten()[: values.numel()].view(values.shape), scales


def quantize_blocks_reference(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """The same by comparing with every value of the code."""
    blocks, scales = _normalized_blocks(values)
    distance = (blocks[..., None] - dynamic_code(signed)).abs()
    if not signed:
        distance[..., 0] = torch.where(blocks > 0, torch.inf, distance[..., 0])
    codes = distance.argmin(-1)
    return codes.to(torch.uint8).flatten()[: values.numel()].view(values.shape), scales


def dequantize_blocks(codes: Tensor, scales: Tensor, *, signed: bool) -> Tensor:
    """The float32 values that `quantize_blocks` rounded to; shape of `codes`."""
    values = dynamic_code(signed).to(codes.device)[codes.flatten().long()]
    blocks = F.pad(values, (0, scales.numel() * BLOCK - values.numel())).view(-1, BLOCK)
    return (blocks * scales[:, None]).flatten()[: codes.numel()].view(codes.shape)


@cache
def dynamic_code(signed: bool) -> Tensor:
    """The 256 values of the dynamic data type, ascending in [-1, 1] or [0, 1].

    Leading zero bits count the decade (1 to 10^-6), the bits behind them cut it evenly; besides, 0 and 1.
    """
    values = [torch.zeros(1), torch.ones(1)]
    bits = 7 if signed else 8
    for decade in range(DECADES):
        edges = torch.linspace(0.1, 1, 2 ** (bits - 1 - decade) + 1, dtype=torch.float64)
        middles = (edges[1:] + edges[:-1]) / 2 * 10.0**-decade
        values += [middles, -middles] if signed else [middles]
    return torch.cat(values).sort().values.float()


@cache
def _lookup(signed: bool) -> tuple[Tensor, Tensor]:
    """Spares a binary search for each entry.

    Middles between neighbors of the code, infinity after the last; and for each upper half of a float32 the code of
    the least number that has it. Numbers that share it differ by less than two middles, so one comparison is left.
    """
    code = dynamic_code(signed)
    middles = (code[1:] + code[:-1]) / 2
    halves = torch.arange(2**16, dtype=torch.int64)
    ends = torch.stack([halves << 16, (halves << 16) | 0xFFFF]).to(torch.int32).view(torch.float32)
    return torch.cat([middles, torch.tensor([torch.inf])]), torch.bucketize(
        ends.amin(0), middles, out_int32=True
    ).clamp(max=255)


def _normalized_blocks(values: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks [n, 256] divided by their largest magnitudes [n]; a block of zeros keeps its zeros."""
    flat = values.detach().float().flatten()
    blocks = F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    return blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None], scales


def _pack(state: dict[str, Tensor], parameter: nn.Parameter) -> None:
    if parameter.numel() < SMALLEST:
        return
    for slot in (*SIGNED, *UNSIGNED):
        if slot in state:
            codes, scales = quantize_blocks(state.pop(slot), signed=slot in SIGNED)
            state[f"{slot}_codes"], state[f"{slot}_scales"] = codes, scales


def _unpack(state: dict[str, Tensor], parameter: nn.Parameter) -> None:
    for slot in (*SIGNED, *UNSIGNED):
        if f"{slot}_codes" in state:
            codes, scales = state.pop(f"{slot}_codes"), state.pop(f"{slot}_scales")
            state[slot] = dequantize_blocks(codes, scales, signed=slot in SIGNED).to(parameter.dtype)


def state_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes that a flat state takes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
