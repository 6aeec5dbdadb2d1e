"""Dense decoders: LLaMA and its relatives."""

from __future__ import annotations

from lmworks.proofs.cases.case import Case

SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
CASES = (
    Case("llama", "tied", {**SIZES, "tie_word_embeddings": True}, "LlamaForCausalLM"),
)  # fmt: skip
