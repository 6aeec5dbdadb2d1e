"""How attention reaches keys and values. Training and serving run the same model and differ only in this object.

`PackedContext` is for whole documents (training, evaluation, encoders); the engine's paged cache is
another implementation. A context that cannot keep documents apart must raise, never mix them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lmworks.kernels.attention import varlen_attention
from lmworks.kernels.scores import Scores


class AttentionContext(Protocol):
    """Attends over the keys and values a token may see."""

    @property
    def latent(self) -> bool:
        """Whether latent attention should hand over its latent, which is cached, instead of keys and values."""
        ...

    @property
    def cu_seqlens(self) -> Tensor:
        """[D+1] int32, where each document's new tokens begin and end."""
        ...

    def lengths(self) -> Tensor:
        """[N] length of the document that each token belongs to, as far as it is known when the token is computed."""
        ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention inside each document.

        Args:
            layer: index of the calling layer, for caches.
            query: [N, H, D] queries of the packed tokens, positions already applied.
            key: [N, K, D] their keys; `H` is a multiple of `K`.
            value: [N, K, Dv] their values. Where `latent` is set, latent attention passes the first Dv columns of
                `key`, and a cache need not store them again.
            scores: scale, mask and whatever else precedes the softmax.

        Returns:
            [N, H, Dv].
        """
        ...

    def cross_attend(
        self, layer: int, query: Tensor, key: Tensor | None, value: Tensor | None, scores: Scores
    ) -> Tensor:
        """Attention of each document to the encoder's output for it.

        Args:
            layer: index of the calling layer.
            query: [N, H, D].
            key: [M, K, D] keys of the encoder's tokens that are new in this step; None when there are none.
            value: [M, K, D] their values.
            scores: as in `attend`; its mask is not used, all of a document's source is seen.

        Returns:
            [N, H, D].
        """
        ...


@dataclass(frozen=True)
class PackedContext:
    """Whole documents laid end to end, nothing cached."""

    cu_seqlens: Tensor
    """[D+1] int32."""
    memory_cu_seqlens: Tensor | None = None
    """[D+1] int32, the encoder's tokens of each document."""
    prefix_lengths: Tensor | None = None
    """[D] tokens at the beginning of each document that all of it may see, whatever a causal mask says."""
    latent: bool = False

    def lengths(self) -> Tensor:
        """See `AttentionContext.lengths`."""
        sizes = self.cu_seqlens.diff()
        return torch.repeat_interleave(sizes, sizes)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """See `AttentionContext.attend`."""
        return varlen_attention(query, key, value, self.cu_seqlens, scores, prefix_lengths=self.prefix_lengths)

    def cross_attend(
        self, layer: int, query: Tensor, key: Tensor | None, value: Tensor | None, scores: Scores
    ) -> Tensor:
        """See `AttentionContext.cross_attend`."""
        assert key is not None, "a packed context has no memory of earlier steps: give the encoder's output"
        assert value is not None, "keys come with values"
        assert self.memory_cu_seqlens is not None, "cross-attention needs the bounds of the encoder's documents"
        return varlen_attention(query, key, value, self.cu_seqlens, scores, key_cu_seqlens=self.memory_cu_seqlens)
