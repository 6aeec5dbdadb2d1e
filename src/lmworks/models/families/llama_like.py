"""Entries and weight rules that most decoders share: Llama's names, with what relatives change left to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.models.families.entries import (
    ActivationField,
    Count,
    Draft,
    Field,
    SpecialTokens,
    get,
    letters,
    put,
    tiled,
)
from lmworks.models.families.hf_config import Fields
from lmworks.models.hub.rules import Rule, rename, with_bias

A = "decoder.attention."
COMMON = (
    Field("vocab_size", "vocab_size"),
    Count("hidden_size", "hidden_size"),
    Count("max_position_embeddings", "max_position_embeddings", 2048),
    Count("num_hidden_layers", "decoder.num_hidden_layers"),
    Field("tie_word_embeddings", "tie_word_embeddings", False),
    Field("initializer_range", "initializer_range", 0.02),
    SpecialTokens(),
)
"""Sizes of a decoder."""
ATTENTION = (
    Count("num_attention_heads", f"{A}num_attention_heads"),
    Count("num_key_value_heads", f"{A}num_key_value_heads", lambda draft: get(draft, f"{A}num_attention_heads")),
)


def divided_head_dim(draft: Draft) -> int:
    """`hidden_size / num_attention_heads`, rounded down as transformers does."""
    return int(draft["hidden_size"] // get(draft, f"{A}num_attention_heads"))


HEAD_DIM = Field("head_dim", f"{A}head_dim", divided_head_dim)
MLP = (
    Count("intermediate_size", "decoder.mlp.intermediate_size"),
    ActivationField("hidden_act", "decoder.mlp.hidden_act", "silu"),
)
RMS_NORM = Field("rms_norm_eps", "decoder.norm.eps", 1e-6)


@dataclass(frozen=True)
class SlidingLayers:
    """Which layers see a window only: `sliding_window` with `layer_types`, or for all layers.

    Comes after every entry that concerns attention. Layers with a window are `S` in the pattern, others `F`.
    """

    default: Callable[[int, Fields], bool] | None = None
    """Whether a layer has the window where `layer_types` does not say; None: as Mistral and Qwen2 mean it."""
    other: tuple[tuple[str, Any], ...] = ()
    """Further fields of the layers with a window, as `LayerConfig` has them: names and values."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        window, types = fields.count("sliding_window", None), fields.take("layer_types", None)
        count = get(draft, "decoder.num_hidden_layers")
        used = fields.take("use_sliding_window", draft["family"] not in ("qwen2", "qwen3"))
        begin = fields.take("max_window_layers", 28) if draft["family"] in ("qwen2", "qwen3") else 0
        if types is None:
            chosen = [self.default(i, fields) if self.default else bool(used and i >= begin) for i in range(count)]
        else:
            if unknown := sorted(set(types) - {"full_attention", "sliding_attention"}):
                raise ConfigError(f"config.json: layer_types {unknown} are not supported", "Use another model")
            if len(types) != count:
                raise ConfigError(
                    f"config.json: layer_types has {len(types)} entries for {count} layers", "Correct one of them"
                )
            chosen = [kind == "sliding_attention" for kind in types]
        if window is None or not any(chosen):
            return
        if all(chosen) and not self.other:
            put(draft, f"{A}sliding_window", window)
            return
        draft["decoder"]["pattern"] = tiled(["S" if c else "F" for c in chosen]) or "S"
        attention = {**get(draft, "decoder.attention"), "sliding_window": window}
        draft["decoder"]["layers"] = {"S": {"attention": attention, **dict(self.other)}}

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        everywhere = get(draft, f"{A}sliding_window")
        layers = draft["decoder"]["layers"]
        window = everywhere or get(layers, "S.attention.sliding_window")
        sliding = [bool(everywhere) or letter == "S" for letter in letters(draft, "decoder")]
        hf["sliding_window"] = window
        if draft["family"] in ("qwen2", "qwen3"):
            hf |= {"use_sliding_window": window is not None, "max_window_layers": 0}
        if draft["family"] != "llama" and (draft["family"] != "mistral" or any(sliding)):
            hf["layer_types"] = ["sliding_attention" if s else "full_attention" for s in sliding]


def renamed(ours: str, theirs: str, modules: str, *, weight_only: bool = False) -> tuple[Rule, ...]:
    """Rules for `modules` (names separated by spaces) that are called the same below `ours` and `theirs`."""
    rules = [with_bias(f"{ours}.{name}", f"{theirs}.{name}") for name in modules.split()]
    return tuple(rule for pair in rules for rule in pair[: 1 if weight_only else 2])


EMBEDDING_AND_HEADS = (
    rename("embed_tokens.weight", "model.embed_tokens.weight"),
    *with_bias("decoder.norm", "model.norm"),
    *with_bias("lm_head", "lm_head"),
    *with_bias("head.score", "score"),
)
LLAMA_ATTENTION = renamed(
    "decoder.layers.{i}.self_attn", "model.layers.{i}.self_attn", "q_proj k_proj v_proj o_proj q_norm k_norm"
)
LLAMA_MLP = renamed("decoder.layers.{i}.mlp", "model.layers.{i}.mlp", "gate_proj up_proj down_proj")
LLAMA_NORMS = renamed("decoder.layers.{i}", "model.layers.{i}", "input_layernorm post_attention_layernorm")
LLAMA_RULES = (*EMBEDDING_AND_HEADS, *LLAMA_ATTENTION, *LLAMA_MLP, *LLAMA_NORMS)
