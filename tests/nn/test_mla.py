"""Latent attention: absorbed and expanded are one function, and it is the one transformers computes."""

import itertools

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from lmworks.kernels.masks import Causal
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.mla import MultiheadLatentAttention
from lmworks.nn.positions import RotaryEmbedding
from lmworks.nn.quantized import QuantizedLinear
from lmworks.nn.rope import inverse_frequencies

SIZES = {"kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
WIDTH, HEADS = 15, 3
BOUNDS = torch.tensor([0, 9, 10, 16], dtype=torch.int32)
POSITIONS = torch.cat([torch.arange(n) for n in BOUNDS.diff()])


def layer(q_lora_rank, bias):
    torch.manual_seed(0)
    mla = MultiheadLatentAttention(0, WIDTH, HEADS, q_lora_rank=q_lora_rank, mask=Causal(), bias=bias, **SIZES)
    for parameter in mla.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mla


def signal(interleaved):
    embedding = RotaryEmbedding(inverse_frequencies(4, 100.0), interleaved=interleaved)
    return embedding(POSITIONS, lambda: POSITIONS, torch.float32)


@pytest.mark.parametrize(("q_lora_rank", "bias", "interleaved"), [(None, False, True), (7, True, False)])
def test_absorbed_is_expanded_in_values_and_gradients(q_lora_rank, bias, interleaved):
    mla, x = layer(q_lora_rank, bias), torch.randn(16, WIDTH)
    results = []
    for latent in (False, True):
        mla.zero_grad()
        inputs = x.clone().requires_grad_()
        y = mla(inputs, signal(interleaved), PackedContext(BOUNDS, latent=latent))
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        results.append([y.detach(), inputs.grad, *(p.grad.clone() for p in mla.parameters())])
    for expanded, absorbed in zip(*results, strict=True):
        torch.testing.assert_close(absorbed, expanded, atol=1e-4, rtol=1e-4)


def test_absorbed_is_expanded_over_int8_weights():
    mla, x = layer(None, False), torch.randn(16, WIDTH)
    mla.kv_b_proj = QuantizedLinear.from_linear(mla.kv_b_proj)
    expanded, absorbed = (mla(x, signal(True), PackedContext(BOUNDS, latent=latent)) for latent in (False, True))
    torch.testing.assert_close(absorbed, expanded, atol=1e-4, rtol=1e-4)


def test_absorbed_hands_over_one_latent_per_token():
    seen = {}

    class Recording(PackedContext):
        def attend(self, layer, query, key, value, scores):
            seen.update(query=query, key=key, value=value)
            return super().attend(layer, query, key, value, scores)

    layer(None, False)(torch.randn(16, WIDTH), signal(True), Recording(BOUNDS, latent=True))
    assert seen["query"].shape == (16, HEADS, 14)
    assert seen["key"].shape == (16, 1, 14)
    assert torch.equal(seen["value"], seen["key"][..., :10])


@pytest.mark.parametrize("q_lora_rank", [None, 7])
@pytest.mark.parametrize(
    ("module", "config_class", "interleaved", "options"),
    [
        (v2, DeepseekV2Config, True, {}),
        (v3, DeepseekV3Config, True, {"rope_interleave": True}),
        (v3, DeepseekV3Config, False, {"rope_interleave": False}),
    ],
    ids=["v2", "v3", "v3-halves"],
)
def test_it_is_the_reference(module, config_class, interleaved, options, q_lora_rank):
    rope = {"rope_type": "default", "rope_theta": 100.0}
    config = config_class(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=HEADS, q_lora_rank=q_lora_rank,
        rope_parameters=rope, attention_bias=True, attn_implementation="eager", **SIZES, **options,
    )  # fmt: skip
    theirs = (v2.DeepseekV2Attention if module is v2 else v3.DeepseekV3Attention)(config, 0)
    rotary = (v2.DeepseekV2RotaryEmbedding if module is v2 else v3.DeepseekV3RotaryEmbedding)(config)
    ours = layer(q_lora_rank, bias=True)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(16, WIDTH)
    for latent in (False, True):
        y = ours(x, signal(interleaved), PackedContext(BOUNDS, latent=latent))
        for begin, end in itertools.pairwise(BOUNDS.tolist()):
            document = x[None, begin:end]
            mask = torch.full((end - begin, end - begin), float("-inf")).triu(1)[None, None]
            angles = rotary(document, POSITIONS[None, begin:end])
            expected = theirs(document, attention_mask=mask, position_embeddings=angles)[0][0]
            torch.testing.assert_close(y[begin:end], expected, atol=1e-5, rtol=1e-5)


def test_yarn_sharpens_the_scores_of_the_whole_head():
    yarn = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 16, "mscale_all_dim": 0.7}
    plain, sharpened = (
        build_model(ModelConfig.parse({
            "vocab_size": 7, "hidden_size": 8, "max_position_embeddings": 64,
            "positions": {"kind": "rope", "interleaved": True, "rope_scaling": scaling},
            "decoder": {
                "num_hidden_layers": 1, "mlp": {"intermediate_size": 8},
                "attention": {"kind": "mla", "num_attention_heads": 2, **SIZES},
            },
        })).decoder.layers[0].self_attn.scale
        for scaling in (None, yarn)
    )  # fmt: skip
    assert plain == pytest.approx(10**-0.5)
    assert sharpened == pytest.approx(plain * v2.yarn_get_mscale(40.0, 0.7) ** 2)
