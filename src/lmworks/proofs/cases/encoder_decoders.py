"""Encoder-decoders: T5, BART and their relatives; XLNet."""

from __future__ import annotations

from lmworks.proofs.cases.case import Case

T5 = {
    "vocab_size": 97, "d_model": 40, "d_kv": 2, "d_ff": 52, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 5,
    "relative_attention_num_buckets": 10, "relative_attention_max_distance": 24, "decoder_start_token_id": 0,
}  # fmt: skip
GATED = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
SWITCH = {
    **T5, "num_layers": 4, "num_decoder_layers": 4, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2,
    "num_experts": 3,
}  # fmt: skip
BART = {
    "vocab_size": 97, "d_model": 48, "encoder_layers": 2, "encoder_attention_heads": 3, "encoder_ffn_dim": 52,
    "decoder_layers": 3, "decoder_attention_heads": 6, "decoder_ffn_dim": 44, "max_position_embeddings": 48,
    "forced_eos_token_id": None, "decoder_start_token_id": 2,
    "pad_token_id": 3,  # not where decoders begin: the reference passes no gradient to the padding's vector
}  # fmt: skip
MARIAN = {**BART, "decoder_start_token_id": 96, "activation_function": "swish"}
XLNET = {"vocab_size": 97, "d_model": 40, "n_layer": 3, "n_head": 5, "d_inner": 52}
CASES = (
    Case("t5", "1.0", T5, "T5ForConditionalGeneration"),
    Case("t5", "1.1", GATED, "T5ForConditionalGeneration", own_head=True),
    Case("t5", "1.1 with a tied head", GATED, "T5ForConditionalGeneration"),
    Case("t5", "SiLU gates", {**T5, "feed_forward_proj": "gated-silu"}, "T5ForConditionalGeneration"),
    Case("mt5", "own head", GATED, "MT5ForConditionalGeneration", own_head=True),
    Case("mt5", "tied", {**T5, "num_layers": 2}, "MT5ForConditionalGeneration"),
    Case("umt5", "tied", {**T5, "feed_forward_proj": "gated-gelu"}, "UMT5ForConditionalGeneration"),
    Case("switch_transformers", "room for all", SWITCH, "SwitchTransformersForConditionalGeneration"),
    Case(
        "switch_transformers", "full experts, all decoder layers sparse",
        {**SWITCH, "expert_capacity": 4, "num_sparse_decoder_layers": 4},
        "SwitchTransformersForConditionalGeneration",
    ),
    Case("bart", "summary", BART, "BartForConditionalGeneration"),
    Case("bart", "forced first token", {**BART, "forced_bos_token_id": 7}, "BartForConditionalGeneration"),
    Case("bart", "scaled embeddings", {**BART, "scale_embedding": True}, "BartForConditionalGeneration"),
    Case("mbart", "translation", {**BART, "scale_embedding": True}, "MBartForConditionalGeneration"),
    Case("marian", "translation", {**MARIAN, "scale_embedding": True}, "MarianMTModel"),
    Case("marian", "ReLU, unscaled", {**MARIAN, "activation_function": "relu"}, "MarianMTModel"),
    Case("pegasus", "summary", {**BART, "decoder_start_token_id": 0}, "PegasusForConditionalGeneration"),
    Case("m2m_100", "translation", BART, "M2M100ForConditionalGeneration"),
    Case("xlnet", "language model", XLNET, "XLNetLMHeadModel"),
    Case("xlnet", "untied, ReLU", {**XLNET, "tie_word_embeddings": False, "ff_activation": "relu"}, "XLNetLMHeadModel"),
    Case("xlnet", "sequence classification", {**XLNET, "num_labels": 3}, "XLNetForSequenceClassification"),
    Case("xlnet", "tagging", {**XLNET, "num_labels": 3}, "XLNetForTokenClassification"),
    Case("xlnet", "question answering", XLNET, "XLNetForQuestionAnsweringSimple"),
    Case("xlnet", "bare", XLNET, "XLNetModel"),
)  # fmt: skip
