"""Entries and weight rules that models of images share: a stack of its own over patches, norms before the branches.

Knows no family.
"""

from __future__ import annotations

from functools import partial

from lmworks.models.families.entries import ActivationField, Constant, Count, Draft, Entry, Field, exact_head_dim, get
from lmworks.models.families.gpt_like import modules
from lmworks.models.hub.rules import Rule

S = "vision.stack."
A, M = f"{S}attention.", f"{S}mlp."


def num_positions(draft: Draft) -> int:
    """Tokens of an image of the trained size."""
    vision = draft["vision"]
    return int((vision["image_size"] // vision["patch_size"]) ** 2 + get(vision, "class_token", True))


def tower(*, hidden_act: str, image_size: int = 224, patch_size: int = 16) -> tuple[Entry, ...]:
    """Sizes, patches, MLP; the arguments are what an absent key means. The inner size and epsilons are left out."""
    return (
        Constant("vocab_size", 0),
        Count("hidden_size", "hidden_size vision.hidden_size", 768),
        Count("num_hidden_layers", f"{S}num_hidden_layers", 12),
        Count("num_attention_heads", f"{A}num_attention_heads {A}num_key_value_heads", 12),
        Constant(f"{A}head_dim", partial(exact_head_dim, attention=A)),
        Constant(f"{A}o_bias", True),
        ActivationField("hidden_act", f"{M}hidden_act", hidden_act),
        Constant(f"{M}gated", False),
        Constant(f"{M}bias", True),
        Constant(f"{S}causal", False),
        Constant(f"{S}norm.kind", "layer"),
        Count("image_size", "vision.image_size", image_size),
        Count("patch_size", "vision.patch_size", patch_size),
        Count("num_channels", "vision.num_channels", 3),
        Constant("max_position_embeddings", num_positions),
        Constant("positions", {"kind": "learned"}),
        Constant("tie_word_embeddings", False),
        Constant("initialization", "normal"),
        Field("initializer_range", "initializer_range", 0.02),
    )


INNER = Count("intermediate_size", f"{M}intermediate_size", 3072)


def layers(pairs: str, theirs: str) -> tuple[Rule, ...]:
    """Rules for the modules of every layer, given as `ours=theirs`, below a prefix of theirs with `{i}`."""
    return modules(pairs, theirs, "vision.layers.{i}.")
