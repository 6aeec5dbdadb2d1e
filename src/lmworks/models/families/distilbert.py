"""DistilBERT: half of BERT's layers, no segments, no pooler (Sanh et al., 2019, arXiv:1910.01108)."""

from __future__ import annotations

from lmworks.models.families.architectures import encoder_heads
from lmworks.models.families.encoder_like import (
    BIASED,
    GAMMA_BETA,
    LEARNED,
    PLAIN_MLP,
    POST_NORM,
    UNUSED,
    Inert,
    bert_embeddings,
    common,
    encoder_act,
    encoder_rules,
)
from lmworks.models.families.family import Family

_NAMES = {
    "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
}  # fmt: skip
_LAYER = {
    "self_attn.q_proj": "attention.q_lin",
    "self_attn.k_proj": "attention.k_lin",
    "self_attn.v_proj": "attention.v_lin",
    "self_attn.o_proj": "attention.out_lin",
    "input_layernorm": "sa_layer_norm",
    "mlp.up_proj": "ffn.lin1",
    "mlp.down_proj": "ffn.lin2",
    "post_attention_layernorm": "output_layer_norm",
}

DISTILBERT = Family(
    name="distilbert",
    architectures=encoder_heads("DistilBert", lm_act=encoder_act, classifier_act="relu"),
    entries=(
        *common(eps=None, act_key="activation", names=_NAMES),
        *LEARNED,
        *POST_NORM,
        *BIASED,
        *PLAIN_MLP,
        # The table of positions is stored whether it began as sines or not.
        Inert("dropout attention_dropout qa_dropout seq_classif_dropout sinusoidal_pos_embds tie_weights_ output_past"),
    ),
    weight_rules=encoder_rules(
        bert_embeddings("distilbert.embeddings."),
        ("distilbert.transformer.layer.{i}.", _LAYER),
        {
            "masked_lm": {"dense": "vocab_transform", "norm": "vocab_layer_norm"},
            "sequence_classification": {"dense": "pre_classifier", "score": "classifier"},
            "token_classification": {"score": "classifier"},
            "question_answering": {"score": "qa_outputs"},
        },
        "vocab_projector",
        "vocab_projector.bias",
    ),
    prefix="distilbert.",
    tied=("vocab_projector.weight",),
    ignored_tensors=UNUSED,
    legacy_names=GAMMA_BETA,
)
