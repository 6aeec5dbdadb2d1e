"""What most decoders share: Llama's entries and tensor names, with what relatives change left to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.models.families.architectures import decoder_heads
from lmworks.models.families.entries import (
    ActivationField,
    Constant,
    Count,
    Draft,
    Entry,
    Field,
    Rotary,
    SpecialTokens,
    Written,
    get,
    letters,
    put,
    tiled,
)
from lmworks.models.families.family import Family, WeightRules
from lmworks.models.families.hf_config import Fields, HFConfig
from lmworks.models.hub.rules import Rule, Split, rename, with_bias

A, M = "decoder.attention.", "decoder.mlp."
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
TIED = Field("tie_word_embeddings", "tie_word_embeddings", True)
"""For families that tie where the file does not say."""
ATTENTION = (
    Count("num_attention_heads", f"{A}num_attention_heads"),
    Count("num_key_value_heads", f"{A}num_key_value_heads", lambda draft: get(draft, f"{A}num_attention_heads")),
)


def divided_head_dim(draft: Draft) -> int:
    """`hidden_size / num_attention_heads`, rounded down as transformers does."""
    return int(draft["hidden_size"] // get(draft, f"{A}num_attention_heads"))


HEAD_DIM = Field("head_dim", f"{A}head_dim", divided_head_dim)
MLP = (
    Count("intermediate_size", f"{M}intermediate_size"),
    ActivationField("hidden_act", f"{M}hidden_act", "silu"),
)
RMS_NORM = Field("rms_norm_eps", "decoder.norm.eps", 1e-6)
ROTARY = Rotary()
ATTENTION_BIAS = Field("attention_bias", f"{A}qkv_bias {A}o_bias", False)
MLP_BIAS = Field("mlp_bias", f"{M}bias", False)


def rms_norm(eps: float) -> tuple[Entry, ...]:
    """RMSNorm; `eps` where the file does not say."""
    return (replace(RMS_NORM, default=eps),)


def layer_norm(key: str = "layer_norm_eps", *, bias: bool = True) -> tuple[Entry, ...]:
    """LayerNorm, its epsilon called `key`."""
    return Constant("decoder.norm", {"kind": "layer", "bias": bias}), Field(key, "decoder.norm.eps", 1e-5)


@dataclass(frozen=True)
class SlidingLayers:
    """Which layers see a window only: `sliding_window` with `layer_types`, or for all layers.

    Comes after every entry that concerns attention. Layers with a window are `S` in the pattern, others `F`; what
    earlier entries have put below `decoder.layers.S` or `.F` is theirs if there are such layers.
    """

    window: int | None = None
    """Where the key is absent; null always means that no layer has a window."""
    full_every: int = 0
    """Where `layer_types` does not say, the last of so many layers sees all; 0: none does."""
    typed: bool = True
    """Whether the family's format has `layer_types`."""
    switched: bool = False
    """Windows need `use_sliding_window`, and begin at layer `max_window_layers` (Qwen)."""
    required: bool = False
    """The family is not defined without windows."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        window = None if fields.null("sliding_window") else fields.count("sliding_window", self.window)
        sliding = self._sliding(fields, get(draft, "decoder.num_hidden_layers"))
        if self.switched and not fields.take("use_sliding_window", False):
            window = None
        layers = draft["decoder"].setdefault("layers", {})
        ours = {name: layers.pop(name) for name in "SF" if name in layers}
        if window is None or not any(sliding):
            if self.required:
                raise ConfigError("config.json has no layer with a window, which this family needs", "Set layer_types")
            return
        if all(sliding) and "S" not in ours:
            put(draft, f"{A}sliding_window", window)
            return
        names = ["S" if s else "F" for s in sliding]
        attention = {**get(draft, "decoder.attention"), "sliding_window": window}
        ours["S"] = {**ours.get("S", {}), "attention": attention}
        assert "pattern" not in draft["decoder"], "one entry alone can give the layers their letters"
        draft["decoder"]["pattern"] = tiled(names) or names[0]
        layers |= {name: layer for name, layer in ours.items() if name in names}

    def _sliding(self, fields: Fields, count: int) -> list[bool]:
        types = fields.take("layer_types", None) if self.typed else None
        begin = fields.take("max_window_layers", 28) if self.switched else 0
        every = fields.take("sliding_window_pattern", self.full_every) if self.full_every else 0
        if types is None:
            if not isinstance(every, int):
                raise ConfigError(
                    f"config.json: sliding_window_pattern = {every!r} is not supported", "Set layer_types"
                )
            return [i >= begin and (every == 0 or (i + 1) % every > 0) for i in range(count)]
        if unknown := sorted(set(types) - {"full_attention", "sliding_attention"}):
            raise ConfigError(f"config.json: layer_types {unknown} are not supported", "Use another model")
        if len(types) != count:
            raise ConfigError(
                f"config.json: layer_types has {len(types)} entries for {count} layers", "Correct one of them"
            )
        return [kind == "sliding_attention" for kind in types]

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        everywhere = get(draft, f"{A}sliding_window")
        window = everywhere or get(draft, "decoder.layers.S.attention.sliding_window")
        sliding = [bool(everywhere) or letter == "S" for letter in letters(draft, "decoder")]
        # Where layers are typed, readers want a window although none uses it.
        hf["sliding_window"] = self.window if window is None and self.typed and not self.switched else window
        if self.switched:
            begin = sliding.index(True) if any(sliding) else len(sliding)
            hf |= {"use_sliding_window": window is not None, "max_window_layers": begin}
        if self.full_every and False in sliding and any(sliding):
            hf["sliding_window_pattern"] = sliding.index(False) + 1  # readers of layer_types overlook it
        if self.typed:
            hf["layer_types"] = ["sliding_attention" if s else "full_attention" for s in sliding]


def renamed(ours: str, theirs: str, modules: str) -> tuple[Rule, ...]:
    """Rules for weights and biases of modules below `ours` and `theirs`, from names separated by spaces.

    `name` is called the same on both sides, `ours=theirs` is not, and `a+b=ab` are fused, end to end, on theirs.
    """
    rules: list[Rule] = []
    for module in modules.split():
        left, _, right = module.partition("=")
        if "+" in left:
            parts = [f"{ours}.{name}" for name in left.split("+")]
            rules += [
                Rule(tuple(f"{part}.{kind}" for part in parts), (f"{theirs}.{right}.{kind}",), (Split(),))
                for kind in ("weight", "bias")
            ]
        else:
            rules += with_bias(f"{ours}.{left}", f"{theirs}.{right or left}")
    return tuple(rules)


def embedding_and_heads(prefix: str = "model.", norm: str = "norm") -> tuple[Rule, ...]:
    """What is not in a layer."""
    return (
        rename("embed_tokens.weight", f"{prefix}embed_tokens.weight"),
        *with_bias("decoder.norm", f"{prefix}{norm}"),
        *with_bias("lm_head", "lm_head"),
        *with_bias("head.score", "score"),
    )


def decoder_rules(
    *, attention: str = "q_proj k_proj v_proj o_proj q_norm k_norm", mlp: str = "gate_proj up_proj down_proj",
    norms: str = "input_layernorm post_attention_layernorm", norm: str = "norm", prefix: str = "model.",
) -> tuple[Rule, ...]:  # fmt: skip
    """All tensors of a decoder; the arguments name modules as `renamed` does.

    Args:
        attention: below `self_attn`.
        mlp: below `mlp`.
        norms: of a layer.
        norm: theirs after the last layer.
        prefix: of every name but the heads'.
    """
    ours, theirs = "decoder.layers.{i}", f"{prefix}layers.{{i}}"
    return (
        *embedding_and_heads(prefix, norm),
        *renamed(f"{ours}.self_attn", f"{theirs}.self_attn", attention),
        *renamed(f"{ours}.mlp", f"{theirs}.mlp", mlp),
        *renamed(ours, theirs, norms),
    )


LLAMA_RULES = decoder_rules()
SANDWICH = (
    "input_layernorm self_attn_output_layernorm=post_attention_layernorm "
    "post_attention_layernorm=pre_feedforward_layernorm mlp_output_layernorm=post_feedforward_layernorm"
)
"""Norms around both branches, under Gemma's names."""
REORDERED = "input_layernorm=post_attention_layernorm post_attention_layernorm=post_feedforward_layernorm"
"""Norms on the output of both branches, under OLMo's names."""


_NO_PADDING = Written({"pad_token_id": None})
"""Written, because the classes' own default may be outside the vocabulary."""


def decoder(
    name: str, stem: str, *entries: Entry,
    norm: tuple[Entry, ...] = (RMS_NORM,), rotary: Entry = ROTARY, rules: WeightRules = LLAMA_RULES,
    heads: Mapping[str, Mapping[str, Any]] | None = None,
) -> Family:  # fmt: skip
    """A family of decoders like Llama.

    Args:
        name: `model_type`.
        stem: of its classes in transformers.
        entries: what it has besides sizes, norm and positions; they overrule the common ones.
        norm: its epsilon and kind.
        rotary: its positions.
        rules: its tensors.
        heads: its classes, where they are not those of every decoder.
    """
    windows = tuple(entry for entry in entries if isinstance(entry, SlidingLayers))
    others = tuple(entry for entry in entries if entry not in windows)
    return Family(
        name=name,
        architectures=decoder_heads(stem) if heads is None else heads,
        entries=(*COMMON, *ATTENTION, HEAD_DIM, *MLP, *others, *norm, rotary, *windows, _NO_PADDING),
        weight_rules=rules,
        prefix="model.",
        ignored_tensors=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    )


def generates_only(stem: str) -> dict[str, Mapping[str, Any]]:
    """Classes of a decoder that transformers gives no head but the language model's."""
    return {k: v for k, v in decoder_heads(stem).items() if k in (f"{stem}ForCausalLM", f"{stem}Model")}


def preset(
    vocab_size: int, hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int, context: int,
    **further: Any,
) -> HFConfig:  # fmt: skip
    """The sizes in a published `config.json`, and `further` keys as they stand there."""
    return {
        "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": intermediate_size,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": context, **further,
    }  # fmt: skip
