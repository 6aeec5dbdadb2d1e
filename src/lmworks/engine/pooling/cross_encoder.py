"""Models that read both texts of a pair at once and say how well they go together. Knows no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lmworks.core.errors import ConfigError
from lmworks.models.config import ModelConfig
from lmworks.models.head_slots import RewardHead, SequenceClassificationHead
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of two texts with what goes around and between them, and to which text each belongs."""


def is_cross_encoder(config: ModelConfig) -> bool:
    """Whether the model's head judges documents: a classifier, or a reward model."""
    return isinstance(config.head, SequenceClassificationHead | RewardHead)


@torch.inference_mode()
def judge(model: Transformer, pairs: Sequence[Pair]) -> list[float]:
    """The sigmoid of the one logit of each pair, all in one forward pass.

    Raises:
        ConfigError: the model's head has several labels.
    """
    head = model.config.head
    if isinstance(head, SequenceClassificationHead) and head.num_labels != 1:
        raise ConfigError(f"a classifier with {head.num_labels} labels gives no score", "Use one with one label")
    device = model.device
    lengths = [len(ids) for ids, _ in pairs]
    ids = torch.tensor([token for tokens, _ in pairs for token in tokens], device=device)
    types = torch.tensor([segment for _, segments in pairs for segment in segments], device=device)
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    bounds = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    segments = types if model.config.embed.type_vocab_size > 1 else None
    hidden = model(ids, positions, PackedContext(bounds), token_type_ids=segments)
    logits = model.document_logits(hidden, bounds).float()
    return logits.sigmoid().flatten().tolist()
