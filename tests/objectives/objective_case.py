"""Tiny models of each kind, documents, and the naive formula, for the tests of objectives."""

import numpy as np
import torch
from torch.nn import functional as F

from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig

VOCAB = 61
NORM = {"kind": "layer", "eps": 1e-12}


def documents(*lengths, seed=0, vocab=50):
    """Token ids from 5 to `vocab`."""
    g = np.random.default_rng(seed)
    return [g.integers(5, vocab, n) for n in lengths]


def stack(*, causal, cross=False):
    attention = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 4}
    return {
        "num_hidden_layers": 2, "attention": attention, "causal": causal, "norm": NORM,
        "mlp": {"intermediate_size": 16, "hidden_act": "gelu", "gated": False},
        "cross_attention": attention if cross else None,
    }  # fmt: skip


def model(kind, head=None, *, seed=0, **changes):
    """An "encoder", "decoder" or "both", with weights large enough that attention is not flat."""
    config = {
        "vocab_size": VOCAB, "hidden_size": 12, "max_position_embeddings": 128, "initializer_range": 0.3,
        "initialization": "normal", "tie_word_embeddings": False, "head": head or {"kind": "causal_lm"},
    }  # fmt: skip
    if kind in ("encoder", "both"):
        config["encoder"] = stack(causal=False)
    if kind in ("decoder", "both"):
        config["decoder"] = stack(causal=True, cross=kind == "both")
    return build_model(ModelConfig.parse(config | changes), seed=seed)


MASKED_LM = {"kind": "masked_lm", "next_sentence": True}
TYPED = {"embed": {"type_vocab_size": 2, "norm": NORM}, "positions": {"kind": "learned"}}


def cross_entropies(model, hidden, targets):
    """[N] by the formula, all logits at once."""
    return F.cross_entropy(model.logits(hidden), targets, reduction="none")


def gradient(model):
    """All gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_same_gradients(model, got, wanted, *, rtol=1e-4):
    """Both scalars have one gradient by all parameters of `model`."""
    grads = []
    for value in (got, wanted):
        model.zero_grad()
        value.backward()
        grads.append(gradient(model))
    assert grads[1].norm() > 0
    assert (grads[0] - grads[1]).norm() / grads[1].norm() < rtol
