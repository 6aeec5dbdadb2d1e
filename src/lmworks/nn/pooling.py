"""One vector per document from the vectors of its tokens. Knows packed documents and no padding."""

from __future__ import annotations

import torch
from torch import Tensor


def pool(hidden: Tensor, cu_seqlens: Tensor, pooling: str) -> Tensor:
    """The first or last token's vector of each document, or the mean of all (arXiv:1908.10084).

    Args:
        hidden: [N, E].
        cu_seqlens: [D+1] int32 bounds of the documents, none empty.
        pooling: "cls", "last" or "mean"; the mean is taken in float32.

    Returns:
        [D, E] of the type of `hidden`.
    """
    if pooling == "cls":
        return hidden[cu_seqlens[:-1].long()]
    if pooling == "last":
        return hidden[cu_seqlens[1:].long() - 1]
    assert pooling == "mean", "the configuration has checked the name"
    lengths = cu_seqlens.diff().long()
    return torch.segment_reduce(hidden.float(), "mean", lengths=lengths, axis=0).to(hidden.dtype)
