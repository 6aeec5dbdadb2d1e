"""A model for a larger vocabulary: each new token begins as the mean of the tokens that stood in its place.

What the model says of old tokens stays the same, bit by bit. Knows no tokenizer: it is told the pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lmworks.core.errors import ConfigError
from lmworks.models.transformer import Transformer


def extend_vocabulary(model: Transformer, pieces: Mapping[int, Sequence[int]], multiple_of: int = 1) -> None:
    """Give new tokens rows in the embedding, and in the head where it has a matrix of its own.

    Rows that a padded table has to spare are taken first.

    Args:
        model: changed in place.
        pieces: the old ids whose mean each new one begins as.
        multiple_of: of which the number of rows becomes a multiple.

    Raises:
        ConfigError: the matrices are quantized, or an id lies outside the vocabulary.
    """
    embedding, head = model.embed_tokens, getattr(model, "lm_head", None)
    old = model.config.vocab_size
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear | None):
        raise ConfigError("a quantized vocabulary cannot grow", "Extend the model before it is quantized")
    if wrong := sorted({i for parts in pieces.values() for i in parts if not 0 <= i < old or i in pieces}):
        raise ConfigError(f"pieces {wrong[:5]} are not old tokens of a vocabulary of {old}", "Give old ids alone")
    if empty := [i for i, parts in pieces.items() if not parts]:
        raise ConfigError(f"the new tokens {empty[:5]} have no pieces to begin from", "Leave them out")
    rows = max([old, *(i + 1 for i in pieces)])
    rows = -(-rows // multiple_of) * multiple_of
    tied = model.tied
    embedding.weight = _grown(embedding.weight, rows, pieces)
    embedding.num_embeddings = rows
    if head is not None:
        if not tied:
            head.weight = _grown(head.weight, rows, pieces)
        if head.bias is not None:
            head.bias = _grown(head.bias, rows, pieces)
        head.out_features = rows
    model.config = model.config.model_copy(update={"vocab_size": rows})
    model.tie_weights()


@torch.no_grad()
def _grown(old: Tensor, rows: int, pieces: Mapping[int, Sequence[int]]) -> nn.Parameter:
    """[V, ...] -> [rows, ...]; rows that no token has are the mean of all, which is neither likely nor unlikely."""
    values = old.detach()
    spare = values.float().mean(0, keepdim=True).to(values.dtype).expand(rows - len(values), *values.shape[1:])
    grown = torch.cat([values, spare])
    for new, parts in pieces.items():
        grown[new] = values[list(parts)].float().mean(0).to(values.dtype)
    return nn.Parameter(grown, requires_grad=old.requires_grad)
