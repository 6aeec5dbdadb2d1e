"""How attention reaches keys and values. Training and serving run the same model and differ only in this object.

`PackedContext` is for whole documents (training, evaluation, encoders); the engine's paged cache is
another implementation. A context that cannot keep documents apart must raise, never mix them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lmworks.kernels.attention import varlen_attention


class AttentionContext(Protocol):
    """Attends over the keys and values a token may see."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Causal attention inside each document.

        Args:
            layer: index of the calling layer, for caches.
            query: [N, H, D] queries of the packed tokens, positions already applied.
            key: [N, K, D] their keys; `H` is a multiple of `K`.
            value: [N, K, D] their values.
            scale: multiplies the scores.

        Returns:
            [N, H, D].
        """
        ...


@dataclass(frozen=True)
class PackedContext:
    """Whole documents laid end to end, nothing cached."""

    cu_seqlens: Tensor
    """[D+1] int32."""
    causal: bool = True

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `AttentionContext.attend`."""
        return varlen_attention(query, key, value, self.cu_seqlens, scale=scale, causal=self.causal)
