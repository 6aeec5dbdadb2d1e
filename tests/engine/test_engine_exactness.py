"""The served model is the trained model: same probabilities, same greedy text, whatever the engine does inside."""

from __future__ import annotations

import pytest
import torch
from tiny_engine import full_logits, greedy_loop, random_prompts, tiny_model

from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM, EngineConfig

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LENGTHS = [5, 1, 33, 17, 70, 16, 32]


def config(**changes) -> EngineConfig:
    return EngineConfig(**{"block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 24, **changes})


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["batched", "reference"])
def test_serving_probabilities_are_the_training_probabilities(family, attention):
    model, prompts = tiny_model(family), random_prompts(LENGTHS)
    llm = LLM(model, config=config(attention=attention))
    params = SamplingParams(temperature=1, max_tokens=12, ignore_eos=True, logprobs=5, seed=1)
    worst = 0.0
    for output in llm.generate(prompts, params):
        tokens = [*output.prompt_token_ids, *output.outputs[0].token_ids]
        expected = full_logits(model, tokens).log_softmax(-1)
        for place, got in enumerate(output.outputs[0].logprobs, start=len(output.prompt_token_ids) - 1):
            assert got.token_id == tokens[place + 1]
            for token, logprob in [(got.token_id, got.logprob), *got.top]:
                worst = max(worst, abs(expected[place, token].item() - logprob))
    assert worst < 1e-5


SETTINGS = {
    "alone": {"max_num_seqs": 1},
    "all together": {"max_num_batched_tokens": 512},
    "chunks of seven": {"max_num_seqs": 3, "max_num_batched_tokens": 7},
    "blocks of one": {"block_size": 1},
    "large blocks": {"block_size": 32},
    "no prefix cache": {"enable_prefix_caching": False},
    "tiny cache": {"max_model_len": 88, "num_kv_blocks": 23},
    "formula": {"attention": "reference"},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_greedy_text_does_not_depend_on_batching(setting):
    model, prompts = tiny_model(), random_prompts(LENGTHS)
    llm = LLM(model, config=config(**SETTINGS[setting]))
    got = [o.outputs[0].token_ids for o in llm.generate(prompts, GREEDY)]
    assert got == [tuple(greedy_loop(model, p, 12)) for p in prompts]
    if setting == "tiny cache":
        assert llm.stats().preemptions_total > 0
    llm.engine.check_integrity()


def test_prefix_hits_change_nothing_but_the_work():
    model = tiny_model()
    shared, *tails = random_prompts([41, 3, 9, 1])
    prompts = [shared + t for t in tails] + [shared, shared]
    llm = LLM(model, config=config())
    first = [llm.generate([p], GREEDY)[0].outputs[0].token_ids for p in prompts]
    stats = llm.stats()
    assert stats.prefix_cache_hits_total >= 4 * 40
    assert [llm.generate([p], GREEDY)[0].outputs[0].token_ids for p in reversed(prompts)] == first[::-1]
    assert first == [tuple(greedy_loop(model, p, 12)) for p in prompts]


def test_seeded_samples_do_not_depend_on_batching():
    model, prompts = tiny_model(), random_prompts(LENGTHS)
    params = [SamplingParams(temperature=0.9, top_p=0.9, seed=i, n=2, max_tokens=12, ignore_eos=True) for i in range(7)]
    results = []
    for setting in ("alone", "all together", "chunks of seven", "tiny cache"):
        outputs = LLM(model, config=config(**SETTINGS[setting])).generate(prompts, params)
        results.append([[c.token_ids for c in o.outputs] for o in outputs])
    assert all(r == results[0] for r in results)
    assert all(a != b for a, b in results[0]), "the completions of one request must differ"


@pytest.mark.parametrize("setting", ["all together", "chunks of seven", "tiny cache", "blocks of one"])
def test_prompts_are_scored_as_the_trainer_scores_them(setting):
    model, prompts = tiny_model(), random_prompts(LENGTHS)
    llm = LLM(model, config=config(**SETTINGS[setting]))
    llm.generate(prompts, GREEDY)  # what is cached must not be skipped
    params = [GREEDY.model_copy(update={"prompt_logprobs": k % 3, "n": 1 + k % 2}) for k in range(len(prompts))]
    for output, asked in zip(llm.generate(prompts, params), params, strict=True):
        tokens = list(output.prompt_token_ids)
        expected = full_logits(model, tokens).log_softmax(-1)
        first, *others = output.prompt_logprobs
        assert first is None
        assert [x.token_id for x in others] == tokens[1:]
        assert {len(x.top) for x in others} <= {asked.prompt_logprobs}
        for place, got in enumerate(others):
            for token, logprob in [(got.token_id, got.logprob), *got.top]:
                assert abs(expected[place, token].item() - logprob) < 1e-5
        assert output.outputs[0].token_ids == tuple(greedy_loop(model, tokens, 12))
    llm.engine.check_integrity()
    assert llm.generate(prompts[:1], GREEDY)[0].prompt_logprobs is None


def test_a_prompt_is_computed_once_for_all_completions():
    model, (prompt,) = tiny_model(), random_prompts([30])
    params = SamplingParams(n=5, seed=3, max_tokens=12, ignore_eos=True)
    llm = LLM(model, config=config())
    got = llm.generate([prompt], params)[0].outputs
    stats = llm.stats()
    assert (stats.prompt_tokens_total, stats.prefix_cache_queries_total) == (30, 30)
    small = LLM(model, config=config(max_num_seqs=2, enable_prefix_caching=False))
    assert [c.token_ids for c in small.generate([prompt], params)[0].outputs] == [c.token_ids for c in got]
    assert len({c.token_ids for c in got}) == 5
    llm.engine.check_integrity()


def test_bfloat16_serves_close_to_bfloat16_training():
    model = tiny_model().to(torch.bfloat16)
    (prompt,) = random_prompts([40])
    (output,) = LLM(model, config=config()).generate([prompt], SamplingParams(max_tokens=1, logprobs=0, seed=0))
    got = output.outputs[0].logprobs[0]
    assert abs(full_logits(model, prompt)[-1].log_softmax(-1)[got.token_id].item() - got.logprob) < 0.15


def test_a_model_in_training_is_served_without_dropout_and_left_in_training():
    model = tiny_model()
    model.decoder.layers[0].mlp = torch.nn.Sequential(model.decoder.layers[0].mlp, torch.nn.Dropout(0.5))
    model.train()
    llm = LLM(model, config=config())
    got = llm.generate(random_prompts([9]), GREEDY)[0].outputs[0].token_ids
    assert model.training
    assert got == tuple(greedy_loop(model.eval(), random_prompts([9])[0], 12))
