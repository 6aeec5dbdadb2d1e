"""ALBERT: layers that share their weights, narrow embeddings, order of two segments (Lan et al., arXiv:1909.11942)."""

from __future__ import annotations

from lmworks.models.families.architectures import encoder_heads
from lmworks.models.families.bert import ABSOLUTE
from lmworks.models.families.encoder_like import (
    BIASED,
    LEARNED,
    PLAIN_MLP,
    POST_NORM,
    TOKEN_TYPES,
    UNUSED,
    EmbeddingSize,
    Inert,
    bert_embeddings,
    common,
    encoder_act,
    encoder_rules,
    modules,
)
from lmworks.models.families.entries import Count, Only
from lmworks.models.families.family import Family

_LAYER = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.dense",
    "input_layernorm": "attention.LayerNorm",
    "mlp.up_proj": "ffn",
    "mlp.down_proj": "ffn_output",
    "post_attention_layernorm": "full_layer_layer_norm",
}
_POOLED = {"pooler": "albert.pooler"}


ALBERT = Family(
    name="albert",
    architectures=encoder_heads("Albert", lm_act=encoder_act, classifier_act="tanh", next_sentence=True, pooler=True),
    entries=(
        *common(hidden_act="gelu_new"),
        *LEARNED,
        *POST_NORM,
        *BIASED,
        *PLAIN_MLP,
        TOKEN_TYPES,
        EmbeddingSize(128, always=True),
        Count("num_hidden_groups", "encoder.num_hidden_groups", 1),
        Only("inner_group_num", (1,), "a group is one layer", 1),
        *ABSOLUTE,
        Inert("classifier_dropout_prob down_scale_factor gap_size net_structure_type num_memory_blocks layers_to_keep"),
    ),
    weight_rules=encoder_rules(
        (
            *bert_embeddings("albert.embeddings."),
            *modules("encoder.", "albert.encoder.", {"embed_projection": "embedding_hidden_mapping_in"}),
        ),
        ("albert.encoder.albert_layer_groups.{i}.albert_layers.0.", _LAYER),
        {
            "masked_lm": {
                "dense": "predictions.dense",
                "norm": "predictions.LayerNorm",
                **_POOLED,
                "next_sentence": "sop_classifier.classifier",
            },
            "sequence_classification": {"dense": "albert.pooler", "score": "classifier"},
            "token_classification": {"score": "classifier"},
            "question_answering": {"score": "qa_outputs"},
            "embedding": _POOLED,
        },
        "predictions.decoder",
        "predictions.bias",
    ),
    prefix="albert.",
    tied=("predictions.decoder.weight",),
    aliases={"predictions.decoder.bias": "predictions.bias"},
    ignored_tensors=(*UNUSED, r"sop_classifier\..*"),
    optional={"head.pooler": "pooler.weight"},
)
