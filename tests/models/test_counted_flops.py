"""Operations of training steps in bfloat16, as torch counts them, are those of the closed form for every family."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lmworks.kernels import flop_formulas  # noqa: F401 - registers the operations
from lmworks.kernels.native.training import training_library
from lmworks.models.accounting import flops_per_token
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.nn.attention_context import PackedContext

HEADS = {"num_attention_heads": 4, "head_dim": 32}
GQA = {**HEADS, "num_key_value_heads": 2}
MLA = {"kind": "mla", "num_attention_heads": 3, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 24,
       "qk_rope_head_dim": 8, "v_head_dim": 32}  # fmt: skip
MOE = {"kind": "moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
WIDE = {"intermediate_size": 96}


def model(attention, mlp, *, which: str = "decoder", **changes) -> ModelConfig:
    stack = {"num_hidden_layers": 2, "attention": attention, "mlp": mlp, "causal": which == "decoder"}
    sizes = {"vocab_size": 80, "hidden_size": 48, "max_position_embeddings": 64}
    return ModelConfig.model_validate({**sizes, which: stack, **changes})


FAMILIES = {
    "dense": model({**HEADS, "num_key_value_heads": 4}, {**WIDE, "gated": False}),
    "gqa": model(GQA, WIDE),
    "moe": model(GQA, {**MOE, "shared_intermediate_size": 16}),
    "mla": model(MLA, WIDE),
    "mla and moe": model(MLA, MOE),
    "encoder": model({**HEADS, "num_key_value_heads": 4}, WIDE, which="encoder", head={"kind": "masked_lm"}),
}


@pytest.mark.parametrize("lengths", [[48], [5, 30, 13]])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step(name: str, lengths: list[int]):
    """The backward pass of fused attention computes the scores again: one product of the forward pass's two."""
    if training_library() is None and name != "encoder":
        pytest.skip("no native operation of training here")
    built = build_model(FAMILIES[name], seed=0).bfloat16()
    ids, positions = torch.randint(0, 80, (sum(lengths),)), torch.cat([torch.arange(n) for n in lengths])
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    with FlopCounterMode(display=False) as counter:
        hidden = built(ids, positions, PackedContext(bounds))
        (built.logits(hidden) if hasattr(built, "lm_head") else built.head(hidden)).float().sum().backward()
    expected = 0.0
    for length in lengths:
        flops = flops_per_token(FAMILIES[name], length)
        expected += length * (flops.training + flops.scores / 2)
    assert counter.get_total_flops() == expected
    attention = [op for op in counter.get_flop_counts()["Global"] if "attention" in str(op)]
    assert len(attention) == 2
