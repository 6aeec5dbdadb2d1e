"""XLNet (arXiv:1906.08237): an encoder that predicts tokens in any order, with Transformer-XL's attention by distance.

Without an order it sees whole documents, as fine-tuned models do; `nn/permuted_context.py` gives one. On disk queries,
keys, values and distances are [model, heads, head]. Documents may be of any length: `n_positions`, which is ours
and 512 where a file does not say, is the length trained on.
"""

from __future__ import annotations

from lmworks.models.config import ModelConfig
from lmworks.models.families.entries import (
    ActivationField,
    Constant,
    Count,
    Draft,
    Field,
    Implied,
    Only,
    SpecialTokens,
    Written,
    get,
)
from lmworks.models.families.family import Family
from lmworks.models.hub.rules import Reshape, Rule, Transpose, rename, with_bias
from lmworks.models.slots import XLAttentionConfig

A, M = "encoder.attention.", "encoder.mlp."


def _head_dim(draft: Draft) -> int:
    return int(draft["hidden_size"] // get(draft, f"{A}num_attention_heads"))


UNUSED = (
    "reuse_len", "same_length", "use_mems_eval", "use_mems_train", "summary_last_dropout", "start_n_top", "end_n_top",
    "ff_dropout", "init", "init_range", "init_std", "n_token", "max_position_embeddings",
)  # fmt: skip
"""Keys that change nothing here."""
ENTRIES = (
    Field("vocab_size", "vocab_size"),
    Count("d_model", "hidden_size"),
    Count("n_positions", "max_position_embeddings", 512),
    Constant("positions.kind", "relative_sinusoidal"),
    Constant("encoder.causal", value=False),
    Count("n_layer", "encoder.num_hidden_layers"),
    Constant(f"{A}kind", "xl"),
    Count("n_head", f"{A}num_attention_heads"),
    Count("d_head", f"{A}head_dim", _head_dim),
    Count("d_inner", f"{M}intermediate_size"),
    ActivationField("ff_activation", f"{M}hidden_act", "gelu"),
    Constant(f"{M}gated", value=False),
    Constant(f"{M}bias", value=True),
    Constant("encoder.placement", "post"),
    Constant("encoder.final_norm", value=False),
    Constant("encoder.norm.kind", "layer"),
    Field("layer_norm_eps", "encoder.norm.eps", 1e-12),
    Field("dropout", "embed.dropout encoder.residual.dropout", 0.1),
    Field("tie_word_embeddings", "tie_word_embeddings", True),
    Field("initializer_range", "initializer_range", 0.02),
    SpecialTokens(),
    Field("pad_token_id", "pad_token_id", 5),
    Only("attn_type", ("bi",), "only XLNet's attention in both directions is there", written="bi"),
    Only("bi_data", (False,), "documents are not reversed"),
    Only("clamp_len", (-1, 0), "distances have no limit", written=-1),
    Only("untie_r", (True,), "every layer has biases of its own"),
    Only("summary_type", ("last",), "documents are judged by their last token", written="last"),
    Only("summary_use_proj", (True,), "there is a dense layer before the labels", written=True),
    Only("summary_activation", ("tanh",), "that layer ends in tanh", written="tanh"),
    Written({"mem_len": None}),
    Implied(UNUSED),
)


SCORES = {"token_classification": "classifier", "question_answering": "qa_outputs"}
"""Their names of the matrix to the labels."""


def _rules(config: ModelConfig) -> tuple[Rule, ...]:
    attention = config.output_stack.attention
    assert isinstance(attention, XLAttentionConfig), "the family has this attention"
    heads, size = attention.num_attention_heads, attention.head_dim
    by_head = Reshape((-1, heads, size), (-1, heads * size))
    by_model = by_head, Transpose()
    apart = Reshape((heads * size, -1), (heads, size, -1))
    ours, theirs = "encoder.layers.{i}", "transformer.layer.{i}"
    kept = ("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")
    return (
        rename("embed_tokens.weight", "transformer.word_embedding.weight"),
        rename("encoder.target_embedding", "transformer.mask_emb", Reshape((1, 1, -1), (1, -1))),
        *(rename(f"{ours}.self_attn.{p}_proj.weight", f"{theirs}.rel_attn.{p}", *by_model) for p in "qkv"),
        rename(f"{ours}.self_attn.r_proj", f"{theirs}.rel_attn.r", *by_model, apart),
        rename(f"{ours}.self_attn.o_proj.weight", f"{theirs}.rel_attn.o", by_head),
        *(rename(f"{ours}.self_attn.{name}", f"{theirs}.rel_attn.{name}") for name in kept),
        *with_bias(f"{ours}.input_layernorm", f"{theirs}.rel_attn.layer_norm"),
        *with_bias(f"{ours}.mlp.up_proj", f"{theirs}.ff.layer_1"),
        *with_bias(f"{ours}.mlp.down_proj", f"{theirs}.ff.layer_2"),
        *with_bias(f"{ours}.post_attention_layernorm", f"{theirs}.ff.layer_norm"),
        *with_bias("lm_head", "lm_loss"),
        *with_bias("head.dense", "sequence_summary.summary"),
        *with_bias("head.score", SCORES.get(config.head.kind, "logits_proj")),
    )


XLNET = Family(
    name="xlnet",
    architectures={
        "XLNetLMHeadModel": {"kind": "causal_lm", "bias": True},
        "XLNetForSequenceClassification": {
            "kind": "sequence_classification", "pooling": "last", "dense_act": "tanh", "bias": True,
        },
        "XLNetForTokenClassification": {"kind": "token_classification", "dense_act": "none"},
        "XLNetForQuestionAnsweringSimple": {"kind": "question_answering"},
        "XLNetModel": {"kind": "embedding", "pooling": "last"},
    },
    entries=ENTRIES,
    weight_rules=_rules,
    prefix="transformer.",
    tied=("lm_loss.weight",),
)  # fmt: skip
