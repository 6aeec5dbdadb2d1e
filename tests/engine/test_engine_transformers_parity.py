"""Greedy generation is token-identical with the transformers library, on tiny random models read from its folders."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from tiny_engine import random_prompts

from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM, EngineConfig
from lmworks.models.hub import load_pretrained


def hf_model(family):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    common = {"vocab_size": 259, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.2}
    if family == "gpt2":
        config = GPT2Config(n_positions=128, n_embd=48, n_layer=3, n_head=6, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0,
                            **common)  # fmt: skip
        return GPT2LMHeadModel(config).eval()
    config = LlamaConfig(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6,
                         num_key_value_heads=2, max_position_embeddings=128, **common)  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_tokens_are_those_of_transformers(family, tmp_path):
    theirs = hf_model(family)
    theirs.save_pretrained(tmp_path)
    prompts = random_prompts([4, 30, 11])
    served = LLM(
        load_pretrained(tmp_path), config=EngineConfig(block_size=4, max_num_seqs=3, max_num_batched_tokens=16)
    )
    outputs = served.generate(prompts, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert output.outputs[0].token_ids == tuple(expected[0, len(prompt) :].tolist())


ROPE = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "longrope": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.3, 1.7],
                 "long_factor": [1.5, 3.0, 6.0, 9.0]},
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPE)
def test_answers_that_outgrow_the_trained_context_are_those_of_transformers(kind, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    common = {"vocab_size": 259, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.2,
              "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6,
              "num_key_value_heads": 2, "rope_parameters": ROPE[kind]}  # fmt: skip
    theirs = {
        "dynamic": lambda: LlamaForCausalLM(LlamaConfig(max_position_embeddings=32, **common)),
        "longrope": lambda: Phi3ForCausalLM(
            Phi3Config(max_position_embeddings=128, original_max_position_embeddings=32, **common)
        ),
    }[kind]().eval()
    theirs.save_pretrained(tmp_path)
    prompts = random_prompts([25, 31, 32, 33, 4])
    served = LLM(load_pretrained(tmp_path), config=EngineConfig(block_size=4, max_num_seqs=3))
    outputs = served.generate(prompts, SamplingParams(temperature=0, max_tokens=16, ignore_eos=True))
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt])
        fresh = deepcopy(theirs)  # its angles remember the longest document seen
        expected = fresh.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        assert output.outputs[0].token_ids == tuple(expected[0, len(prompt) :].tolist())
