"""Every decoder that can be a native program gives its modules' logits, the same bits in any company."""

from __future__ import annotations

import random
from array import array

import pytest
import torch
from tiny_engine import byte_tokenizer, random_prompts, tiny_model

from lmworks.compress.round_to_nearest import QuantizeConfig, quantize
from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM, EngineConfig
from lmworks.engine.execution.lowering import LoweredDecoder, NotLowered
from lmworks.engine.execution.model_runner import ROUNDED_BOUND
from lmworks.engine.execution.packed_linear import PackedLinear, pack_linears, quantize_linears
from lmworks.engine.servable import served_decoder
from lmworks.kernels.native.library import library
from lmworks.models.cache_layout import cache_entries
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.models.slots import MLAConfig
from lmworks.nn.attention_context import PackedContext
from lmworks.proofs import reference
from lmworks.proofs.cases import all_cases

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
BLOCK = 16
BY_MODULES = ("an encoder", "cross-attention", "MixtureOfExperts", "MultiheadLatentAttention", "RelativePositionBias")
"""What programs leave to the modules."""

pytestmark = pytest.mark.skipif(library() is None, reason="the machine has no compiler")


def caches(model, tokens, dtype=torch.float32):
    return [
        torch.zeros(e.planes, e.kv_heads, -(-tokens // BLOCK), BLOCK, e.width, dtype=dtype)
        for e in cache_entries(served_decoder(model.config))
    ]


def run(lowered, pieces, length, tokens):
    """Logits of one sequence computed in pieces of these lengths."""
    table, start, rows = array("i", range(-(-length // BLOCK))), 0, []
    for piece in pieces:
        ids, places = array("i", tokens[start : start + piece]), array("i", range(start, start + piece))
        if lowered.angles_by_step:
            lowered.set_angles(torch.tensor(places), torch.full((piece,), length))
        sequence = (table.buffer_info()[0], start, piece, 0)
        rows.append(lowered.program.run(ids, places, [sequence], array("i", range(piece))))
        start += piece
    return torch.cat(rows)


@pytest.mark.parametrize("case", all_cases(), ids=lambda c: f"{c.family}-{c.name}")
def test_every_decoder_agrees_with_its_modules(case, tmp_path):
    reference.build(case, 3).save_pretrained(tmp_path)
    model = load_pretrained(tmp_path).float().eval()
    try:
        served_decoder(model.config)
        made = caches(model, case.longest)
    except ConfigError:
        return  # generates nothing, or has no paged cache
    tokens = torch.randint(model.config.vocab_size, (case.longest,), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        context = PackedContext(torch.tensor([0, case.longest], dtype=torch.int32))
        hidden = model.encode if model.encoder is not None else model
        expected = model.logits(hidden(tokens, torch.arange(case.longest), context))
        pack_linears(model, "none")
        try:
            lowered = LoweredDecoder(model, made, case.longest)
        except NotLowered as part:
            if not any(name in str(part) for name in BY_MODULES):
                raise
            return
        got = run(lowered, [case.longest], case.longest, tokens.tolist())
        assert (got - expected).abs().max() < 1e-4 * expected.std().clamp_min(1.0)
        again = LoweredDecoder(model, caches(model, case.longest), case.longest)
        pieces = [5, 1, 1, case.longest - 7]
        assert torch.equal(run(again, pieces, case.longest, tokens.tolist()), got), "chunks changed bits"


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_do_not_depend_on_company(tmp_path, quantization, dtype):
    save_pretrained(tiny_model(seed=0), tmp_path)
    byte_tokenizer().save(tmp_path)
    prompts = random_prompts([random.Random(7).randrange(1, 60) for _ in range(12)])
    params = [
        SamplingParams(temperature=t, seed=i, max_tokens=12, logprobs=3, ignore_eos=True)
        for i, t in enumerate([0.0, 1.0] * 6)
    ]

    def answers(**limits):
        llm = LLM(tmp_path, config=EngineConfig(dtype=dtype, quantization=quantization, **limits))
        assert llm.engine.runner.native
        if limits["max_num_seqs"] == 1:
            outputs = [llm.generate([p], q)[0] for p, q in zip(prompts, params, strict=True)]
        else:
            outputs = llm.generate(prompts, params)
        llm.engine.check_integrity()
        return [(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in outputs]

    alone = answers(max_num_seqs=1, max_num_batched_tokens=512, enable_prefix_caching=False)
    together = answers(max_num_seqs=12, max_num_batched_tokens=16)
    preempted = answers(max_num_seqs=12, max_num_batched_tokens=16, num_kv_blocks=8, max_model_len=100)
    assert alone == together == preempted


def test_a_grid_beside_a_head_in_floating_point_is_compared_as_rounded():
    """Activations are rounded wherever weights are integers, so no program gives the modules' very numbers."""
    model = tiny_model(seed=0)
    head = model.lm_head
    model.lm_head = torch.nn.Identity()
    quantize_linears(model, "int4")
    model.lm_head = head
    runner = LLM(model, config=EngineConfig(dtype="float32", quantization="none")).engine.runner
    assert runner.native
    assert runner._difference()[1] == ROUNDED_BOUND


def test_matrices_that_files_hold_transposed_are_rounded_as_they_are():
    model = tiny_model("gpt2", hidden_size=96)  # a multiple of 32: nothing is filled up, and so copied, before rounding
    weight = model.decoder.layers[0].mlp.up_proj.weight
    weight.data = weight.data.T.contiguous().T
    prompts = random_prompts([9])
    expected, got = (
        LLM(m, config=EngineConfig(dtype="float32", quantization="int4")).generate(prompts, GREEDY)[0].outputs[0]
        for m in (tiny_model("gpt2", hidden_size=96), model)
    )
    assert got.token_ids == expected.token_ids


def test_new_weights_are_packed_in_place(tmp_path):
    save_pretrained(tiny_model(seed=0), tmp_path)
    byte_tokenizer().save(tmp_path)
    prompts = random_prompts([20, 5])
    served = LLM(tmp_path, config=EngineConfig(dtype="float32", enable_prefix_caching=False))
    for seed in (0, 1):
        model = tiny_model(seed=seed)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(parameter, 1.0, 0.3)
        served.update_weights(model.state_dict())
        expected = LLM(model, config=EngineConfig(enable_prefix_caching=False))
        assert not isinstance(model.lm_head, PackedLinear), "a model in memory is not ours to change"
        got = [o.outputs[0].token_ids for o in served.generate(prompts, GREEDY)]
        assert got == [o.outputs[0].token_ids for o in expected.generate(prompts, GREEDY)]


def test_weights_on_a_grid_do_not_take_on_others(tmp_path):
    model = tiny_model(seed=0)
    save_pretrained(model, tmp_path / "plain")
    byte_tokenizer().save(tmp_path / "plain")
    quantize(QuantizeConfig(model=tmp_path / "plain", output=tmp_path / "int8"))
    served = LLM(tmp_path / "int8")
    before = served.generate(random_prompts([9]), GREEDY)[0].outputs[0].token_ids
    with pytest.raises(CheckpointError):
        served.update_weights(tiny_model(seed=1).state_dict())
    assert served.generate(random_prompts([9]), GREEDY)[0].outputs[0].token_ids == before


def test_latent_attention_keeps_the_matrix_that_it_absorbs():
    latent = MLAConfig(
        num_attention_heads=3, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=10
    )  # fmt: skip
    decoder = tiny_model().config.decoder.model_copy(update={"attention": latent})
    plain, packed = (tiny_model(decoder=decoder).eval() for _ in range(2))
    pack_linears(packed, "none")
    assert isinstance(packed.decoder.layers[0].self_attn.o_proj, PackedLinear)
    prompts = random_prompts([20, 5])
    answers = [[o.outputs[0].token_ids for o in LLM(m).generate(prompts, GREEDY)] for m in (plain, packed)]
    assert answers[0] == answers[1]
