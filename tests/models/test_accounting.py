"""Closed-form counts are what the built model has and what torch counts while it runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lmworks.kernels.attention import varlen_attention_reference
from lmworks.models.accounting import flops_per_token, kv_bytes_per_token, parameters, weight_bytes
from lmworks.models.build import build_model
from lmworks.models.families import FAMILIES, family_named
from lmworks.models.hub.quantization import replace_linears

LLAMA, GPT2, QWEN3 = (next(iter(family_named(n).presets.values())) for n in ("llama", "gpt2", "qwen3"))


def small(config, **changes):
    attention = config.decoder.attention.model_copy(
        update={"head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2, **changes.pop("attention", {})}
    )
    mlp = config.decoder.mlp.model_copy(update={"intermediate_size": 40, **changes.pop("mlp", {})})
    decoder = config.decoder.model_copy(update={"num_hidden_layers": 3, "attention": attention, "mlp": mlp})
    sizes = {"vocab_size": 50, "hidden_size": 24, "max_position_embeddings": 32, "decoder": decoder}
    return config.model_copy(update={**sizes, "bos_token_id": None, "eos_token_ids": (), **changes})


class WholeMatrix:
    """Attention by its formula, whose products torch's counter sees; fused kernels leave out what is masked."""

    def attend(self, layer, query, key, value, scale):
        bounds = torch.tensor([0, len(query)], dtype=torch.int32)
        return varlen_attention_reference(query, key, value, bounds, scale=scale)


CASES = [
    small(LLAMA), small(LLAMA, tie_word_embeddings=True), small(QWEN3), small(GPT2),
    small(LLAMA, attention={"qkv_bias": True, "o_bias": True}, mlp={"bias": True}),
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_of_published_models(name):
    for config in family_named(name).presets.values():
        with torch.device("meta"):
            model = build_model(config)
        assert parameters(config).total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", CASES)
def test_parameters_by_use(config):
    model = build_model(config)
    counted = parameters(config)
    assert counted.total == sum(p.numel() for p in model.parameters())
    assert counted.linear == sum(p.numel() for n, p in model.named_parameters() if "proj.weight" in n)
    assert counted.vectors == sum(p.numel() for p in model.parameters() if p.ndim == 1)


@pytest.mark.parametrize("config", CASES)
def test_operations_are_those_torch_counts(config):
    model, n = build_model(config), 16
    with FlopCounterMode(display=False) as counter:
        logits = model.logits(model(torch.arange(n), torch.arange(n), WholeMatrix()))
        forward = counter.get_total_flops()
        logits.sum().backward()
    assert forward == n * flops_per_token(config, n)
    assert counter.get_total_flops() == 3 * forward


def test_bytes():
    config = CASES[1]
    assert weight_bytes(config, torch.bfloat16) == 2 * parameters(config).total
    assert kv_bytes_per_token(config, torch.bfloat16) == 3 * 2 * 2 * 8 * 2
    model = build_model(config)
    replace_linears(model, [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"])
    held = {t.data_ptr(): t.nbytes for n, t in model.state_dict().items()}
    assert weight_bytes(config, torch.float32, int8=True) == sum(held.values())
