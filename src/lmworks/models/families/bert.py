"""BERT and encoders with its names: BERT, MiniLM (by its name too), ELECTRA.

Post-norm layers over learned positions and segments, a norm over the embeddings, none at the end (Devlin et al., 2019,
arXiv:1810.04805; MiniLM, arXiv:2002.10957). ELECTRA projects narrower embeddings, its discriminator judges each token
(arXiv:2003.10555).
"""

from __future__ import annotations

from lmworks.models.families.architectures import encoder_heads
from lmworks.models.families.encoder_like import (
    BERT_LAYER,
    BIASED,
    GAMMA_BETA,
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
from lmworks.models.families.entries import Only
from lmworks.models.families.family import Family

ABSOLUTE = (
    Only("position_embedding_type", ("absolute",), "relative_key positions are not supported"),
    Only("is_decoder", (False,), "this is an encoder"),
    Only("add_cross_attention", (False,), "this is an encoder"),
    Inert(
        "hidden_dropout_prob attention_probs_dropout_prob classifier_dropout gradient_checkpointing directionality "
        "pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type output_past"
    ),
)
ENTRIES = (*common(), *LEARNED, *POST_NORM, *BIASED, *PLAIN_MLP, TOKEN_TYPES, *ABSOLUTE)
_POOLED = {"pooler": "bert.pooler.dense"}
_PAIR = {**_POOLED, "next_sentence": "cls.seq_relationship"}
_TRANSFORM = {"dense": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.LayerNorm"}


BERT = Family(
    name="bert",
    architectures={
        **encoder_heads("Bert", lm_act=encoder_act, classifier_act="tanh", next_sentence=True, pooler=True),
        "BertForNextSentencePrediction": {"kind": "next_sentence"},
    },
    entries=ENTRIES,
    weight_rules=encoder_rules(
        bert_embeddings("bert.embeddings."),
        ("bert.encoder.layer.{i}.", BERT_LAYER),
        {
            "masked_lm": _TRANSFORM | _PAIR,
            "next_sentence": _PAIR,
            "sequence_classification": {"dense": "bert.pooler.dense", "score": "classifier"},
            "token_classification": {"score": "classifier"},
            "question_answering": {"score": "qa_outputs"},
            "embedding": _POOLED,
        },
        "cls.predictions.decoder",
        "cls.predictions.bias",
    ),
    prefix="bert.",
    tied=("cls.predictions.decoder.weight",),
    aliases={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    ignored_tensors=UNUSED,
    legacy_names=GAMMA_BETA,
    optional={"head.pooler": "pooler.dense.weight"},
)
_ELECTRA_HEADS = encoder_heads("Electra", lm_act="gelu", classifier_act="gelu")
ELECTRA = Family(
    name="electra",
    architectures={
        "ElectraForPreTraining": {"kind": "token_classification", "num_labels": 1, "dense_act": encoder_act},
        **_ELECTRA_HEADS,
    },
    entries=(
        *ENTRIES,
        EmbeddingSize(128),
        Inert("summary_type summary_use_proj summary_activation summary_last_dropout"),
    ),
    weight_rules=encoder_rules(
        (
            *bert_embeddings("electra.embeddings."),
            *modules("encoder.", "electra.", {"embed_projection": "embeddings_project"}),
        ),
        ("electra.encoder.layer.{i}.", BERT_LAYER),
        {
            "masked_lm": {"dense": "generator_predictions.dense", "norm": "generator_predictions.LayerNorm"},
            "sequence_classification": {"dense": "classifier.dense", "score": "classifier.out_proj"},
            "token_classification": {"score": "classifier"},
            "token_classification+dense": {
                "dense": "discriminator_predictions.dense",
                "score": "discriminator_predictions.dense_prediction",
            },
            "question_answering": {"score": "qa_outputs"},
        },
        "generator_lm_head",
        "generator_lm_head.bias",
    ),
    prefix="electra.",
    tied=("generator_lm_head.weight",),
    ignored_tensors=UNUSED,
    legacy_names=GAMMA_BETA,
)
