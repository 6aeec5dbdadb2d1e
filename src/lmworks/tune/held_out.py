"""Conversations kept out of training to measure it, and the loss on them. Knows no stage."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from lmworks.core.messages import Message
from lmworks.data.rows.conversations import ConversationRows
from lmworks.objectives.causal_lm import causal_lm

Conversation = list[Message]

LARGEST_SHARE = 0.1
"""At most this share of the conversations is held out."""


def choose(
    conversations: Sequence[Conversation], *, held_out: int, at_most: int | None, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Split conversations into those to learn from and those to measure with.

    The choice follows from the seed and from what the first user turn says, so that two answers to one
    prompt never stand on both sides, and adding conversations moves few others.

    Args:
        conversations: all there are.
        held_out: about how many to hold out, if that is no more than `LARGEST_SHARE` of all.
        at_most: how many to learn from at most; None takes all.
        seed: another seed makes another choice.

    Returns:
        `(training, held out)`, each in the order given.
    """
    prompts = [_prompt(c) for c in conversations]
    ranked = sorted(set(prompts), key=lambda p: hashlib.sha256(f"{seed}\0{p}".encode("utf-8", "replace")).digest())
    sizes = Counter(prompts)
    wanted = min(held_out, int(len(conversations) * LARGEST_SHARE))
    measured: set[str] = set()
    taken = 0
    for prompt in ranked:
        if taken + sizes[prompt] <= wanted:
            measured.add(prompt)
            taken += sizes[prompt]
    learned: set[str] = set()
    left = len(conversations) if at_most is None else at_most
    for prompt in ranked:
        if prompt not in measured and sizes[prompt] <= left:
            learned.add(prompt)
            left -= sizes[prompt]
    pairs = list(zip(prompts, conversations, strict=True))
    return [c for p, c in pairs if p in learned], [c for p, c in pairs if p in measured]


def validation_loss(model: Any, rows: ConversationRows, *, batch_rows: int = 8) -> float:
    """Nats per assistant token over one pass; the model is left in the mode it was in."""
    was_training = model.training
    model.eval()
    loss = targets = 0.0
    with torch.no_grad():
        for start in range(0, rows.rows_per_epoch, batch_rows):
            batch = rows.rows(start, min(batch_rows, rows.rows_per_epoch - start))
            result = causal_lm(model, batch.to(next(model.parameters()).device))
            loss += float(result.loss_sum)
            targets += float(result.n_targets)
    model.train(was_training)
    return loss / targets


def _prompt(conversation: Conversation) -> str:
    return next((m.content for m in conversation if m.role == "user"), "")
