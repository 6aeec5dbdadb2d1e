"""How order enters: vectors added to embeddings, rotations of queries and keys, biases of scores.

Additive codes are modules from positions to vectors. The others give a `PositionSignal`, once per forward pass and
kind, which every attention layer applies. Knows no configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmworks.kernels.scores import DistanceBias, ScoreBias
from lmworks.nn.rope import Rotation, rotation


@dataclass(frozen=True)
class PositionSignal:
    """What positions do inside attention."""

    rotation: Rotation | None = None
    bias: ScoreBias | None = None
    sinusoids: Tensor | None = None
    """[N, E] sines, then cosines of each token's position."""
    segments: Tensor | None = None
    """[N] segment of each token, where attention tells them apart."""


NO_SIGNAL = PositionSignal()


class LearnedPositionEmbedding(nn.Embedding):
    """A trained vector per position; row `offset` belongs to position 0."""

    def __init__(self, positions: int, hidden_size: int, offset: int = 0) -> None:
        super().__init__(positions + offset, hidden_size)
        self.offset = offset

    def forward(self, positions: Tensor) -> Tensor:
        """[N] -> [N, E]."""
        return super().forward(positions + self.offset)


class SinusoidalPositionEmbedding(nn.Module):
    """Sines and cosines of geometrically growing wavelengths (arXiv:1706.03762).

    Args:
        hidden_size: E, even.
        interleaved: sine and cosine alternate; else all sines come first.
        offset: number of the first position.
        endpoint: the wavelengths end with 2π·10000, as in tensor2tensor, not one step before.
    """

    def __init__(self, hidden_size: int, *, interleaved: bool, offset: int = 0, endpoint: bool = False) -> None:
        super().__init__()
        self.hidden_size, self.interleaved, self.offset = hidden_size, interleaved, offset
        self.span = hidden_size - 2 if endpoint else hidden_size

    def forward(self, positions: Tensor) -> Tensor:
        """[N] -> [N, E] float32."""
        # Angles grow with positions: float32 would lose the fifth digit after a few hundred.
        even = torch.arange(0, self.hidden_size, 2, device=positions.device, dtype=torch.float64)
        speeds = torch.exp(even * (-math.log(10_000.0) / self.span))
        angles = (positions + self.offset).double()[:, None] * speeds
        waves = angles.sin().float(), angles.cos().float()
        return torch.stack(waves, -1).flatten(-2) if self.interleaved else torch.cat(waves, -1)


class RelativeSinusoids(nn.Module):
    """What Transformer-XL's attention needs to know the sinusoids of any two tokens' distance (`nn/xl_attention.py`).

    Args:
        hidden_size: E, even.
    """

    length_dependent = False

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self._waves = SinusoidalPositionEmbedding(hidden_size, interleaved=False)

    def forward(self, positions: Tensor, lengths: Callable[[], Tensor], dtype: torch.dtype) -> PositionSignal:
        """The signal of packed positions [N]."""
        return PositionSignal(sinusoids=self._waves(positions).to(dtype))


class RotaryEmbedding(nn.Module):
    """Turns queries and keys (`nn/rope.py`). Speeds stay float32 whatever the model, or far positions would blur.

    Args:
        speeds: [R/2], or a function of document lengths.
        interleaved: pairs are neighbors.
        factor: multiplies cosines and sines: a number, or below and above a document length.
    """

    def __init__(
        self, speeds: Tensor | Callable[[Tensor], Tensor], *, interleaved: bool = False, factor: float = 1.0
    ) -> None:
        super().__init__()
        self.interleaved, self.factor = interleaved, factor
        self._speeds = speeds  # not a buffer: a buffer would be cast with the model and lost on the meta device

    @property
    def length_dependent(self) -> bool:
        """Whether a token's angles depend on the length of its document, so that cached keys may not be shared."""
        return not isinstance(self._speeds, Tensor)

    def forward(self, positions: Tensor, lengths: Callable[[], Tensor], dtype: torch.dtype) -> PositionSignal:
        """The signal of packed positions [N]."""
        if isinstance(self._speeds, Tensor):
            self._speeds = self._speeds.to(positions.device)
            speeds = self._speeds
        else:
            speeds = self._speeds(lengths())
        return PositionSignal(rotation(positions, speeds, dtype, interleaved=self.interleaved, factor=self.factor))


class AlibiBias(nn.Module):
    """Scores fall by slope · distance (arXiv:2108.12409).

    For other than 2^n heads the odd slopes of the next power follow.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        power = 2 ** math.floor(math.log2(num_heads))
        slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
        slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(num_heads - power)]
        self.slopes = torch.tensor(slopes)
        """[H]."""

    length_dependent = False

    def forward(self, positions: Tensor, lengths: Callable[[], Tensor], dtype: torch.dtype) -> PositionSignal:
        """The signal of any packed positions."""
        self.slopes = self.slopes.to(positions.device)
        return PositionSignal(bias=DistanceBias(self.slopes))


class RelativePositionBias(nn.Module):
    """A trained score per head and bucket of distance: exact when near, logarithmic up to a maximum (T5).

    Args:
        num_heads: H.
        num_buckets: for both directions together.
        max_distance: all beyond share a bucket.
        bidirectional: keys after the query have buckets of their own.
    """

    length_dependent = False

    def __init__(self, num_heads: int, num_buckets: int, max_distance: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.num_buckets, self.max_distance, self.bidirectional = num_buckets, max_distance, bidirectional
        self.weight = nn.Parameter(torch.empty(num_buckets, num_heads))

    def buckets(self, distance: Tensor) -> Tensor:
        """The bucket of each distance, key position less query position."""
        count = self.num_buckets // 2 if self.bidirectional else self.num_buckets
        bucket = torch.where(distance > 0, count, 0) if self.bidirectional else torch.zeros_like(distance)
        away = distance.abs() if self.bidirectional else (-distance).clamp(min=0)
        exact = count // 2
        octaves = torch.log(away.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (octaves * (count - exact)).long()).clamp(max=count - 1)
        return bucket + torch.where(away < exact, away, far)

    def forward(self, positions: Tensor, lengths: Callable[[], Tensor], dtype: torch.dtype) -> PositionSignal:
        """The signal of any packed positions."""
        return PositionSignal(
            bias=lambda query, key: self.weight[self.buckets(key[None, :] - query[:, None])].permute(2, 0, 1)
        )
