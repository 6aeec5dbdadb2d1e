"""Tiny random models, a byte-level tokenizer and plain loops as oracles, shared by the engine's tests."""

from __future__ import annotations

import torch
from tokenizers.pre_tokenizers import ByteLevel

from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.position_slots import LearnedPositions
from lmworks.models.slots import AttentionConfig, MLPConfig, NormConfig
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext
from lmworks.tokenization import Tokenizer
from lmworks.tokenization.definition import TokenizerDefinition

BOS, IM_START, IM_END, FIRST_BYTE = 0, 1, 2, 3
VOCABULARY = FIRST_BYTE + 256
CONTEXT = 128
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """One token per byte, after `<|endoftext|>`, `<|im_start|>` and `<|im_end|>`."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = [*special, *sorted(ByteLevel.alphabet())]
    return Tokenizer(
        TokenizerDefinition(
            spec={
                "version": "1.0",
                "normalizer": None,
                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                                  "use_regex": False},
                "post_processor": None,
                "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(vocabulary)}, "merges": []},
                "added_tokens": [
                    {"id": i, "content": t, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
                     "normalized": False}
                    for i, t in enumerate(special)
                ],
            },
            config={"bos_token": special[0], "eos_token": special[0], "add_bos_token": True},
            chat_template=TEMPLATE,
            eos_token_ids=(IM_END,),
        )
    )  # fmt: skip


def tiny_model(family: str = "llama", seed: int = 0, **changes: object) -> Transformer:
    """Three layers, grouped heads; weights large enough for attention to be sharp."""
    gpt2 = family == "gpt2"
    values = {
        "family": family,
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "max_position_embeddings": CONTEXT,
        "decoder": StackConfig(
            num_hidden_layers=3,
            attention=AttentionConfig(
                num_attention_heads=6, num_key_value_heads=6 if gpt2 else 2, head_dim=8, qkv_bias=gpt2, o_bias=gpt2
            ),
            mlp=MLPConfig(intermediate_size=96, gated=not gpt2, bias=gpt2),
            norm=NormConfig(kind="layer" if gpt2 else "rms"),
        ),
        "initializer_range": 0.2,
        **({"positions": LearnedPositions()} if gpt2 else {}),
        **changes,
    }
    return build_model(ModelConfig(**values), seed=seed)


@torch.no_grad()
def full_logits(model: Transformer, token_ids: list[int]) -> torch.Tensor:
    """[T, V]: the trainer's forward over one document."""
    n = len(token_ids)
    context = PackedContext(torch.tensor([0, n], dtype=torch.int32))
    return model.logits(model(torch.tensor(token_ids), torch.arange(n), context)).float()


def greedy_loop(model: Transformer, prompt: list[int], max_tokens: int, ends: tuple[int, ...] = ()) -> list[int]:
    """Greedy decoding that recomputes everything for each token."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(int(full_logits(model, tokens)[-1].argmax()))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :]


def random_prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Random bytes as tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(FIRST_BYTE, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
