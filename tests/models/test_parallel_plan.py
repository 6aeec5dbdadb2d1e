"""Every family states how it is divided, in names that exist, or says why it cannot be."""

import pytest
import torch
from torch import nn

from lmworks.core.errors import ParallelError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.families import FAMILIES, family_named
from lmworks.models.parallel_plan import shard_units, tensor_plan
from lmworks.models.slots import AttentionConfig, MLPConfig
from lmworks.proofs.tiny import GPT2, LLAMA


def short(config):
    """The same with two layers of each stack, so that it is built in no time."""

    def cut(stack):
        return stack.model_copy(update={"num_hidden_layers": 2}) if stack and not stack.num_hidden_groups else stack

    vision = config.vision and config.vision.model_copy(update={"stack": cut(config.vision.stack)})
    return config.model_copy(update={"encoder": cut(config.encoder), "decoder": cut(config.decoder), "vision": vision})


def published():
    return [(f"{name}/{preset}", config) for name in FAMILIES for preset, config in family_named(name).presets.items()]


def test_plans_of_all_families_name_modules_that_divide():
    divided, refused = set(), {}
    for name, config in published():
        with torch.device("meta"):
            modules = dict(build_model(short(config)).named_modules())
        assert set(shard_units(short(config))) <= modules.keys(), name
        try:
            plan = tensor_plan(short(config), 2)
        except ParallelError as error:
            refused[name] = str(error)
            continue
        divided.add(name)
        assert plan.keys() <= modules.keys(), name
        for path, style in plan.items():
            if style in ("column", "row"):
                assert type(modules[path]) is nn.Linear, path
                assert modules[path].weight.shape[style == "row"] % 2 == 0, path
            elif style == "vocabulary":
                assert isinstance(modules[path], nn.Linear | nn.Embedding), path
    assert len(divided) > 20
    assert all("Set `tensor: 1`" in reason or "Choose another degree" in reason for reason in refused.values())


def test_a_llama_layer_is_divided_by_columns_then_rows():
    plan = tensor_plan(LLAMA.model_copy(update={"vocab_size": 132}), 2)
    layer = {k.removeprefix("decoder.layers.1."): v for k, v in plan.items() if k.startswith("decoder.layers.1.")}
    assert layer == {
        "self_attn.q_proj": "column", "self_attn.k_proj": "column", "self_attn.v_proj": "column",
        "self_attn.o_proj": "row", "mlp.gate_proj": "column", "mlp.up_proj": "column", "mlp.down_proj": "row",
    }  # fmt: skip
    assert {k: v for k, v in plan.items() if ".layers." not in k} == {
        "embed_tokens": "vocabulary", "lm_head": "vocabulary", "decoder": "tokens", "decoder.position_codes": "shared",
    }  # fmt: skip
    assert shard_units(LLAMA) == ["decoder.layers.0", "decoder.layers.1", "decoder.layers.2"]


def changed(config, **attention):
    decoder = config.decoder
    update = {"attention": decoder.attention.model_copy(update=attention)}
    return config.model_copy(update={"vocab_size": 132, "decoder": decoder.model_copy(update=update)})


@pytest.mark.parametrize(
    ("config", "ranks", "words"),
    [
        (LLAMA, 2, ("vocab_size is 131", "tensor 2 ranks", "pad the vocabulary")),
        (changed(LLAMA), 4, ("num_attention_heads of decoder.layers.0.self_attn is 6", "4 ranks")),
        (changed(LLAMA), 3, ("num_key_value_heads of decoder.layers.0.self_attn is 2", "3 ranks")),
        (changed(GPT2, qk_norm="full"), 2, ("norms of queries and keys see all heads", "Set `tensor: 1`")),
        (changed(GPT2, sinks=True), 2, ("sinks", "Set `tensor: 1`")),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_reason(config, ranks, words):
    with pytest.raises(ParallelError) as error:
        tensor_plan(config, ranks)
    for word in words:
        assert word in str(error.value)


def test_tokens_of_shared_or_dropped_layers_stay_whole():
    heads = AttentionConfig(num_attention_heads=2, num_key_value_heads=2, head_dim=8)
    stack = StackConfig(
        num_hidden_layers=4, num_hidden_groups=2, attention=heads, mlp=MLPConfig(intermediate_size=8), causal=False
    )
    config = ModelConfig(vocab_size=8, hidden_size=16, max_position_embeddings=8, encoder=stack)
    assert "encoder" not in tensor_plan(config, 2)
    assert shard_units(config) == ["encoder.layers.0", "encoder.layers.1"]
