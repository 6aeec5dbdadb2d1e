"""What training keeps in memory, in closed form: weights, gradients, optimizer states, activations.

Knows no allocator: fragmentation, and what an operation needs while it runs, come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lmworks.models.accounting import block_norms, parameters
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.matrices import different_layers, head_matrices
from lmworks.models.position_slots import AlibiPositions, Positions, RelativeBiasPositions
from lmworks.models.slots import Attention, AttentionConfig, FeedForward, MLAConfig, MLPConfig, NormConfig

ACTIVATION_TENSORS = {"silu": 2, "gelu": 2, "gelu_pytorch_tanh": 2, "quick_gelu": 3, "relu": 1, "relu2": 2}
"""Tensors kept around an activation function: its input, its output, what is between; ReLU needs its output alone."""
LOSS_CHUNK = 512
"""Tokens whose logits exist at one time (`kernels/linear_cross_entropy.py`)."""


@dataclass(frozen=True)
class TrainingBytes:
    """The largest sum that exists at one time, by what it is for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    """The loss of a language model: gradients of the vocabulary's matrix and of the hidden states, some logits."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.head


def training_bytes(
    config: ModelConfig, tokens: int, precision: torch.dtype = torch.bfloat16, *, context_length: int | None = None,
    checkpointing: bool = False, optimizer_states: int = 2,
) -> TrainingBytes:  # fmt: skip
    """Memory of an update as `train` makes it: float32 weights and states, a copy of the weights for other precisions.

    Args:
        config: the model.
        tokens: of one forward pass.
        precision: of the forward and backward pass.
        context_length: see `activation_bytes`.
        checkpointing: see `activation_bytes`.
        optimizer_states: float32 numbers per weight; 2 are AdamW's, 1 momentum's.
    """
    count, hidden = parameters(config).total, config.hidden_size
    each = 4 if precision == torch.float32 else 4 + precision.itemsize
    vocabulary = sum(m.size for m in head_matrices(config) if m.part == "vocabulary")
    logits = LOSS_CHUNK * config.vocab_size * (4 + precision.itemsize) if vocabulary else 0
    return TrainingBytes(
        weights=count * each,
        gradients=count * each,
        optimizer=count * 4 * optimizer_states,
        activations=activation_bytes(
            config, tokens, precision, context_length=context_length, checkpointing=checkpointing
        ),
        head=4 * vocabulary + logits + (tokens * hidden * precision.itemsize if vocabulary else 0),
    )


def activation_bytes(
    config: ModelConfig, tokens: int, dtype: torch.dtype, *, context_length: int | None = None,
    checkpointing: bool = False,
) -> int:  # fmt: skip
    """What a forward pass up to the hidden states keeps for the backward pass, within about a tenth.

    Attention is taken to be fused where its scores allow it: torch keeps the weights of every query besides, on
    CPU, under a window or where keys and values differ in size. Of sparse and linear attention only inputs and
    outputs are counted. The encoder of a model that has both stacks sees as many tokens as the decoder.

    Args:
        config: the model.
        tokens: of all documents together.
        dtype: of the activations.
        context_length: tokens of a document, for scores that are kept; None: all are one document.
        checkpointing: only the inputs of layers are kept, and the layer at work is computed again.
    """
    keys = context_length or tokens
    total = 0
    for owner, stack in config.columns.values():
        layers = [
            _layer_bytes(owner, stack, attention, mlp, layer.positions or owner.positions, keys, dtype)
            for attention, mlp, layer in different_layers(stack)
        ]
        norms = stack.final_norm + (owner.embed.norm is not None)
        # The hidden states that leave the stack are kept by what reads them.
        total += norms * _norm_bytes(stack.norm, owner.hidden_size, dtype) + owner.hidden_size * dtype.itemsize
        if config.vision is not None and stack is config.vision.stack:
            total += config.vision.num_channels * config.vision.patch_size**2 * dtype.itemsize
        if checkpointing:
            total += stack.num_hidden_layers * owner.hidden_size * dtype.itemsize + max(layers)
        else:
            total += sum(layers) * (stack.num_hidden_layers // len(layers))
    return tokens * total


def _layer_bytes(
    config: ModelConfig, stack: StackConfig, attention: Attention, mlp: FeedForward, positions: Positions, keys: int,
    dtype: torch.dtype,
) -> int:  # fmt: skip
    """Of one token."""
    hidden, size, cross = config.hidden_size, dtype.itemsize, stack.cross_attention
    inputs = 1 if stack.placement == "parallel_shared" else 2
    branches = 2 if cross is None else 3
    count = (inputs if cross is None else inputs + 1) * hidden * size
    count += block_norms(stack) * _norm_bytes(stack.norm, hidden, dtype)
    count += branches * hidden * (size if stack.residual.gate != "none" else 0)
    count += branches * hidden * (1 if stack.residual.dropout else 0)
    count += _attention_bytes(attention, stack.norm, positions, keys, dtype) + _feed_forward_bytes(hidden, mlp, size)
    return count + (0 if cross is None else 4 * cross.num_attention_heads * cross.head_dim * size)


def _attention_bytes(
    attention: Attention, norm: NormConfig, positions: Positions, keys: int, dtype: torch.dtype
) -> int:
    heads, size = attention.num_attention_heads, dtype.itemsize
    if isinstance(attention, MLAConfig):
        wide = attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim
        return 2 * size * (heads * wide + attention.kv_lora_rank + (attention.q_lora_rank or 0))
    fused = 4 * heads * attention.head_dim * size
    if not isinstance(attention, AttentionConfig):
        return fused
    if attention.qk_norm != "none":
        fused += _norm_bytes(norm, (heads + attention.num_key_value_heads) * attention.head_dim, dtype)
    kept = 2 if attention.attn_logit_softcapping else 1 if attention.sinks else 0
    if isinstance(positions, RelativeBiasPositions):
        return fused + keys * (max(kept, 1) * heads * 4 + 8)  # in float32; with the bucket of every distance, int64
    return fused + keys * heads * size * (max(kept, 1) if isinstance(positions, AlibiPositions) else kept)


def _feed_forward_bytes(hidden: int, mlp: FeedForward, size: int) -> int:
    inner = ACTIVATION_TENSORS[mlp.hidden_act] + (2 if mlp.gated else 0)
    if isinstance(mlp, MLPConfig):
        return inner * mlp.intermediate_size * size
    clamped = 2 if mlp.swiglu_limit else 0
    routed = mlp.num_experts_per_tok * (2 * hidden + (inner + clamped) * mlp.moe_intermediate_size)
    shared = inner * mlp.shared_intermediate_size + (hidden if mlp.shared_expert_gate else 0)
    router = mlp.num_experts + (hidden if size < 4 else 0)  # works in float32, on a copy of its input
    return (routed + shared) * size + router * 4


def _norm_bytes(norm: NormConfig, width: int, dtype: torch.dtype) -> int:
    """What a norm keeps: its input or its result before the weight; Gemma's in float32."""
    return width * (4 if norm.unit_offset and norm.kind == "rms" else dtype.itemsize)
