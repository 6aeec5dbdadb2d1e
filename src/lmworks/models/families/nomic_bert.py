"""Nomic BERT: rotary positions and gated SiLU between BERT's norms (Nussbaum et al., 2024, arXiv:2402.01613)."""

from __future__ import annotations

from lmworks.models.families.architectures import encoder_heads
from lmworks.models.families.encoder_like import (
    POST_NORM,
    TOKEN_TYPES,
    UNUSED,
    Inert,
    common,
    encoder_act,
    encoder_rules,
    modules,
)
from lmworks.models.families.entries import Count, Rotary
from lmworks.models.families.family import Family
from lmworks.models.hub.rules import Rule, Split, rename

_LAYER = {
    "self_attn.o_proj": "attn.out_proj",
    "input_layernorm": "norm1",
    "mlp.up_proj": "mlp.fc11",
    "mlp.gate_proj": "mlp.fc12",
    "mlp.down_proj": "mlp.fc2",
    "post_attention_layernorm": "norm2",
}
_QKV = Rule(
    tuple(f"encoder.layers.{{i}}.self_attn.{p}_proj.weight" for p in "qkv"),
    ("nomic_bert.encoder.layers.{i}.attn.Wqkv.weight",),
    (Split(),),
)
_TRANSFORM = {"dense": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.layer_norm"}
_HEADS = encoder_heads("NomicBert", lm_act=encoder_act, classifier_act="tanh")

NOMIC_BERT = Family(
    name="nomic_bert",
    architectures={name: head for name, head in _HEADS.items() if head["kind"] != "question_answering"},
    entries=(
        *common(hidden_act="silu"),
        Count("max_position_embeddings", "max_position_embeddings", 2048),
        *POST_NORM,
        TOKEN_TYPES,
        Rotary(theta=1000.0),
        Inert("hidden_dropout_prob attention_probs_dropout_prob classifier_dropout head_dim"),
    ),
    weight_rules=encoder_rules(
        (
            rename("embed_tokens.weight", "nomic_bert.embeddings.word_embeddings.weight"),
            *modules("encoder.embed_", "nomic_bert.", {"types": "embeddings.token_type_embeddings", "norm": "emb_ln"}),
        ),
        ("nomic_bert.encoder.layers.{i}.", _LAYER),
        {
            "masked_lm": _TRANSFORM,
            "sequence_classification": {"dense": "nomic_bert.pooler.dense", "score": "classifier"},
            "token_classification": {"score": "classifier"},
        },
        "cls.predictions.decoder",
        "cls.predictions.bias",
        (_QKV,),
    ),
    prefix="nomic_bert.",
    tied=("cls.predictions.decoder.weight",),
    aliases={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    ignored_tensors=UNUSED,
)
