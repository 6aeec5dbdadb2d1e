"""Encoders with every head: BERT, RoBERTa and their relatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lmworks.proofs.cases.case import Case

SIZES = {
    "vocab_size": 101, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 50,
    "max_position_embeddings": 48,
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
MODERNBERT = {**SIZES, "num_hidden_layers": 4, "local_attention": 8, **SPECIAL}
DISTILBERT = {
    "vocab_size": 101,
    "dim": 36,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 50,
    "max_position_embeddings": 44,
}
HEADS = {
    "ForMaskedLM": "masked LM",
    "ForSequenceClassification": "sequence classification",
    "ForTokenClassification": "tagging",
    "ForQuestionAnswering": "question answering",
    "Model": "bare",
}


def _cases(
    family: str, stem: str, sizes: Mapping[str, Any], *, heads: Mapping[str, str] | None = None
) -> Iterator[Case]:
    for suffix, name in {**HEADS, **(heads or {})}.items():
        labels = {"num_labels": 3} if "Classification" in suffix else {}
        yield Case(family, name, {**sizes, **labels}, f"{stem}{suffix}")


CASES: tuple[Case, ...] = (
    *_cases(
        "bert", "Bert", SIZES,
        heads={"ForPreTraining": "masked LM and next sentence", "ForNextSentencePrediction": "next sentence"},
    ),
    Case("bert", "three segments", {**SIZES, "hidden_act": "gelu_new", "type_vocab_size": 3}, "BertForMaskedLM"),
    Case("bert", "relu, one label", {**SIZES, "hidden_act": "relu", "num_labels": 1}, "BertForSequenceClassification"),
    *_cases("roberta", "Roberta", {**SIZES, "layer_norm_eps": 1e-5, "type_vocab_size": 1}),
    Case("roberta", "padding elsewhere", {**SIZES, "pad_token_id": 4}, "RobertaForMaskedLM"),
    *_cases("xlm-roberta", "XLMRoberta", {**SIZES, "layer_norm_eps": 1e-5, "type_vocab_size": 1}),
    *_cases("camembert", "Camembert", {**SIZES, "type_vocab_size": 1}),
    *_cases("distilbert", "DistilBert", DISTILBERT),
    Case("distilbert", "untied", {**DISTILBERT, "tie_word_embeddings": False}, "DistilBertForMaskedLM"),
    *_cases("electra", "Electra", {**SIZES, "embedding_size": 22}, heads={"ForPreTraining": "discriminator"}),
    Case("electra", "no projection", {**SIZES, "embedding_size": 36}, "ElectraForMaskedLM"),
    *_cases("albert", "Albert", {**SIZES, "embedding_size": 22}),
    Case(
        "albert", "two groups, order of segments",
        {**SIZES, "num_hidden_layers": 4, "num_hidden_groups": 2, "embedding_size": 36}, "AlbertForPreTraining",
    ),
    *_cases("mpnet", "MPNet", SIZES),
    *_cases("modernbert", "ModernBert", MODERNBERT),
    Case(
        "modernbert", "biases, mean, own layer types",
        {**MODERNBERT, "norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True,
         "classifier_pooling": "mean", "classifier_activation": "silu", "num_labels": 4,
         "layer_types": ["sliding_attention", "full_attention"] * 2}, "ModernBertForSequenceClassification",
    ),
    Case(
        "modernbert", "no window, untied, no bias at the end",
        {**MODERNBERT, "layer_types": ["full_attention"] * 4, "decoder_bias": False, "tie_word_embeddings": False},
        "ModernBertForMaskedLM",
    ),
    *(c for c in _cases("nomic_bert", "NomicBert", SIZES) if c.name != "question answering"),
)  # fmt: skip
