"""What a model costs, in closed form: parameters, operations, bytes. Knows no hardware and runs nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lmworks.models.config import LearnedPositions, ModelConfig


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters by what is done with them."""

    embedding: int
    """Looked up, not multiplied: token embedding (also when it serves as the head) and learned positions."""
    head: int
    """The head's own matrix; 0 when it is the embedding."""
    linear: int
    """Matrices inside the blocks."""
    vectors: int
    """Norms and biases."""

    @property
    def total(self) -> int:
        """All, a tied matrix counted once."""
        return self.embedding + self.head + self.linear + self.vectors


def parameters(config: ModelConfig) -> Parameters:
    """Count a model's parameters."""
    stack, attention, mlp = config.decoder, config.decoder.attention, config.decoder.mlp
    hidden, layers = config.hidden_size, stack.num_hidden_layers
    query = attention.num_attention_heads * attention.head_dim
    key_value = 2 * attention.num_key_value_heads * attention.head_dim
    inner = mlp.intermediate_size * (2 if mlp.gated else 1)
    norm = hidden * (2 if stack.norm.kind == "layer" else 1)
    biases = (
        (query + key_value if attention.qkv_bias else 0)
        + (hidden if attention.o_bias else 0)
        + (inner + hidden if mlp.bias else 0)
        + (2 * attention.head_dim if attention.qk_norm else 0)
    )
    positions = config.max_position_embeddings if isinstance(config.positions, LearnedPositions) else 0
    return Parameters(
        embedding=(config.vocab_size + positions) * hidden,
        head=0 if config.tie_word_embeddings else config.vocab_size * hidden,
        linear=layers * hidden * (2 * query + key_value + inner + mlp.intermediate_size),
        vectors=layers * (2 * norm + biases) + norm,
    )


def flops_per_token(config: ModelConfig, context_length: float) -> float:
    """Operations of one token's forward pass; training takes three times as many.

    A multiplication and an addition count as two. Norms, activations and biases are left out, as is usual
    (Kaplan et al., 2020, arXiv:2001.08361; Chowdhery et al., 2022, arXiv:2204.02311, appendix B).

    Args:
        config: the model.
        context_length: keys that each query is multiplied with. Pass the sequence length for the usual
            model-FLOPs utilization; half of it for what causal attention needs at least.
    """
    attention = config.decoder.attention
    counted = parameters(config)
    head = config.vocab_size * config.hidden_size
    scores_and_values = 4 * config.decoder.num_hidden_layers * attention.num_attention_heads * attention.head_dim
    return 2 * (counted.linear + head) + scores_and_values * context_length


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that one token's keys and values take in the cache."""
    attention = config.decoder.attention
    per_layer = 2 * attention.num_key_value_heads * attention.head_dim
    return config.decoder.num_hidden_layers * per_layer * dtype.itemsize


def weight_bytes(config: ModelConfig, dtype: torch.dtype, *, int8: bool = False) -> int:
    """Bytes of a model's weights.

    Args:
        config: the model.
        dtype: of what is floating point.
        int8: the blocks' matrices are int8 with a scale in `dtype` per output row; embedding and head are not.
    """
    counted = parameters(config)
    if not int8:
        return counted.total * dtype.itemsize
    stack, attention = config.decoder, config.decoder.attention
    heads = attention.num_attention_heads + 2 * attention.num_key_value_heads
    inner = stack.mlp.intermediate_size * (2 if stack.mlp.gated else 1)
    rows = stack.num_hidden_layers * (heads * attention.head_dim + inner + 2 * config.hidden_size)
    return counted.linear + (counted.total - counted.linear + rows) * dtype.itemsize
