"""Weights arranged for oneDNN give the plain product's bits, in a served model and after new weights."""

from __future__ import annotations

import pytest
import torch
from tiny_engine import byte_tokenizer, random_prompts, tiny_model

from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM, EngineConfig
from lmworks.engine.packed_linear import PackedLinear, pack_linears, packs
from lmworks.models.hub import save_pretrained
from lmworks.models.slots import MLAConfig

pytestmark = pytest.mark.skipif(not packs(), reason="this machine has no bfloat16 products")

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_same_bits(rows, bias):
    linear = torch.nn.Linear(48, 131, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(rows, 48, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(PackedLinear(linear)(x), linear(x))


def test_a_folder_served_in_bfloat16_is_packed_and_takes_new_weights(tmp_path):
    save_pretrained(tiny_model(seed=0), tmp_path)
    byte_tokenizer().save(tmp_path)
    prompts = random_prompts([20, 5])
    served = LLM(tmp_path, config=EngineConfig(dtype="bfloat16", enable_prefix_caching=False))
    assert isinstance(served.engine.model.lm_head, PackedLinear)
    for seed in (0, 1):
        model = tiny_model(seed=seed)
        served.update_weights(model.state_dict())
        expected = LLM(model.to(torch.bfloat16), config=EngineConfig(enable_prefix_caching=False))
        assert not isinstance(model.lm_head, PackedLinear), "a model in memory is not ours to change"
        got = [o.outputs[0].token_ids for o in served.generate(prompts, GREEDY)]
        assert got == [o.outputs[0].token_ids for o in expected.generate(prompts, GREEDY)]


def test_float32_linear_maps_are_left_alone():
    model = tiny_model()
    pack_linears(model)
    assert not any(isinstance(m, PackedLinear) for m in model.modules())


def test_latent_attention_keeps_the_matrix_that_it_absorbs():
    latent = MLAConfig(
        num_attention_heads=3, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=10
    )  # fmt: skip
    decoder = tiny_model().config.decoder.model_copy(update={"attention": latent})
    plain, packed = (tiny_model(decoder=decoder).to(torch.bfloat16).eval() for _ in range(2))
    pack_linears(packed)
    assert isinstance(packed.decoder.layers[0].self_attn.o_proj, PackedLinear)
    prompts = random_prompts([20, 5])
    answers = [[o.outputs[0].token_ids for o in LLM(m).generate(prompts, GREEDY)] for m in (plain, packed)]
    assert answers[0] == answers[1]
