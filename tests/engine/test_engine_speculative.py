"""Guessing ahead changes how much is computed at once, never what comes out: every sampler, any batch, any proposer."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch
from tiny_engine import BOS, VOCABULARY, byte_tokenizer, random_prompts, tiny_model

from lmworks.core.errors import ConfigError
from lmworks.core.sampling import SamplingParams, StructuredOutputs
from lmworks.engine import LLM, EngineConfig
from lmworks.engine.config import SpeculativeConfig
from lmworks.engine.request import Request
from lmworks.engine.scheduling.sequence import Sequence
from lmworks.engine.speculation.drafters import NgramProposer, allowed
from lmworks.models.transformer import Transformer

NGRAM = SpeculativeConfig(method="ngram", num_speculative_tokens=3, prompt_lookup_min=1)


def config(**changes) -> EngineConfig:
    return EngineConfig(**{"block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 24, **changes})


def exact_model() -> Transformer:
    """In float64: a sum in another order then gives the same float32 logits, and every draw is the same."""
    return tiny_model().double()


def proposals(tokens, count=4, shortest=2, longest=4) -> list[int]:
    settings = SpeculativeConfig(method="ngram", prompt_lookup_min=shortest, prompt_lookup_max=longest)
    sequence = Sequence(Request("r", tuple(tokens), SamplingParams()), 0, tuple(tokens), 100)
    return NgramProposer(settings).propose([(sequence, count)])[0]


@pytest.fixture(scope="module")
def draft_folder(tmp_path_factory) -> str:
    """The served model with a little noise: often right, not always."""
    from lmworks.models.hub import save_pretrained

    model = tiny_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("draft") / "model"
    save_pretrained(model, folder)
    byte_tokenizer().save(folder)
    return str(folder)


def test_what_followed_the_last_tokens_is_guessed_to_follow():
    assert proposals([1, 2, 3, 4, 5, 9, 1, 2, 3]) == [4, 5, 9, 1]
    assert proposals([1, 2, 7, 0, 1, 2, 8, 0, 1, 2], 2) == [8, 0], "the latest"
    assert proposals([5, 1, 2, 7, 0, 6, 1, 2, 8, 0, 5, 1, 2], 1) == [7], "the longest before the latest"
    assert proposals([1, 2, 3, 4]) == []
    assert proposals([1, 2, 3, 9, 3], shortest=2) == []
    assert proposals([1, 2, 3, 9, 3], 2, shortest=1) == [9, 3]
    assert proposals([8, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1], "what repeats goes on repeating"


def test_a_long_prompt_is_learned_step_by_step():
    tokens = (*range(5000), 0, 1, 2)
    sequence = Sequence(Request("r", tokens, SamplingParams()), 0, tokens, 100)
    proposer = NgramProposer(SpeculativeConfig(method="ngram"))
    assert [proposer.propose([(sequence, 2)])[0] for _ in range(4)] == [[], [], [3, 4], [3, 4]]


def test_an_index_that_grows_guesses_like_a_new_one():
    numbers = random.Random(0)
    settings = SpeculativeConfig(method="ngram", prompt_lookup_min=1, prompt_lookup_max=3)
    proposer, prompt = NgramProposer(settings), (0, 1)
    sequence = Sequence(Request("r", prompt, SamplingParams()), 0, prompt, 1000)
    for _ in range(300):
        expected = NgramProposer(settings).propose([(sequence, 4)])
        assert proposer.propose([(sequence, 4)]) == expected
        sequence.token_ids += numbers.choices(range(3), k=numbers.randint(1, 4))
    proposer.forget(sequence)
    assert not proposer._indices


SAMPLERS = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.3},
    "cut": {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.01},
    "typical": {"temperature": 0.5, "typical_p": 0.8},
    "penalties": {"temperature": 0, "repetition_penalty": 1.05, "frequency_penalty": 0.1, "presence_penalty": 0.1},
    "rules": {
        "temperature": 0.4,
        "logit_bias": {40: 5.0},
        "min_tokens": 6,
        "bad_words": ("a",),
        "stop_token_ids": (9,),
    },
    "logprobs": {"temperature": 0.3, "logprobs": 2, "prompt_logprobs": 1},
    "stop strings": {"temperature": 0.3, "stop": ("e", "\ufffd\ufffd")},
}


TIGHT = {"max_num_batched_tokens": 9, "max_model_len": 60, "num_kv_blocks": 18}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_tokens_come_out(sampler, draft_folder):
    model, tokenizer = exact_model(), byte_tokenizer()
    prompts = [p * 3 for p in random_prompts([5, 1, 11, 7])]
    params = [SamplingParams(seed=i, n=1 + i % 3, max_tokens=16, **SAMPLERS[sampler]) for i in range(4)]
    expected = LLM(model, tokenizer, config()).generate(prompts, params)
    draft_model = SpeculativeConfig(method="draft_model", num_speculative_tokens=3, model=draft_folder)
    for speculative, changes in product((NGRAM, draft_model), ({}, TIGHT)):
        llm = LLM(model, tokenizer, config(speculative_config=speculative, **changes))
        got = llm.generate(prompts, params)
        for a, b in zip(expected, got, strict=True):
            assert [c.token_ids for c in a.outputs] == [c.token_ids for c in b.outputs], changes
            assert [c.text for c in a.outputs] == [c.text for c in b.outputs]
            assert [c.finish_reason for c in a.outputs] == [c.finish_reason for c in b.outputs]
        for x, y in zip(_logprobs(expected), _logprobs(got), strict=True):
            assert abs(x - y) < 1e-6
        stats = llm.stats()
        assert stats.spec_decode_num_draft_tokens_total > 0
        assert sum(stats.spec_decode_num_accepted_tokens_per_pos) == stats.spec_decode_num_accepted_tokens_total
        if speculative is draft_model:
            assert stats.spec_decode_num_accepted_tokens_total > 0
            llm.engine.speculation.proposer.check_integrity()
        llm.engine.check_integrity()
        assert stats.kv_cache_usage == 0


def _logprobs(outputs) -> list[float]:
    return [t.logprob for o in outputs for c in o.outputs for t in c.logprobs or ()]


def test_text_that_repeats_takes_fewer_steps(draft_folder):
    model = tiny_model()
    prompts = random_prompts([20, 20])
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, logit_bias={50: 100.0})
    for speculative in (NGRAM, SpeculativeConfig(method="draft_model", model=draft_folder)):
        llm = LLM(model, byte_tokenizer(), config(speculative_config=speculative))
        steps, step = 0, llm.engine.step

        def counted(step=step):
            nonlocal steps
            steps += 1
            return step()

        llm.engine.step = counted
        llm.generate(prompts, params)
        assert steps < 30, "every guess is right"
        stats = llm.stats()
        assert stats.spec_decode_num_accepted_tokens_total > 0.9 * stats.spec_decode_num_draft_tokens_total


def test_guesses_never_reach_the_prefix_cache():
    model, prompt = exact_model(), random_prompts([6])[0] * 4
    params = SamplingParams(temperature=0.2, seed=3, max_tokens=60, ignore_eos=True, logit_bias={65: 3.0, 66: 3.0})
    plain = LLM(model, config=config(block_size=2))
    llm = LLM(model, config=config(block_size=2, speculative_config=NGRAM))
    for _ in range(2):
        first = llm.generate([prompt], params)[0].outputs[0].token_ids
        again = [*prompt, *first]
        assert llm.generate([again], params)[0].outputs == plain.generate([again], params)[0].outputs
    stats = llm.stats()
    assert 0 < stats.spec_decode_num_accepted_tokens_total < stats.spec_decode_num_draft_tokens_total
    assert stats.prefix_cache_hits_total > 0


def test_a_grammar_is_followed_by_guesses_and_answers(draft_folder):
    model, tokenizer = exact_model(), byte_tokenizer()
    prompts = [[BOS, *p] for p in random_prompts([5, 9])]
    params = [
        SamplingParams(temperature=t, seed=1, max_tokens=40, structured_outputs=StructuredOutputs(regex="(ab|cd){12}e"))
        for t in (0, 1)
    ]
    expected = [o.outputs[0] for o in LLM(model, tokenizer, config()).generate(prompts, params)]
    assert all(len(o.text) == 25 for o in expected)
    for speculative in (NGRAM, SpeculativeConfig(method="draft_model", model=draft_folder)):
        llm = LLM(model, tokenizer, config(speculative_config=speculative))
        assert [o.outputs[0] for o in llm.generate(prompts, params)] == expected
        assert llm.stats().spec_decode_num_accepted_tokens_total > 0


def test_aborted_and_finished_requests_leave_nothing_with_the_draft_model(draft_folder):
    speculative = SpeculativeConfig(method="draft_model", model=draft_folder)
    engine = LLM(tiny_model(), byte_tokenizer(), config(speculative_config=speculative)).engine
    for name, prompt in zip("abc", random_prompts([30, 9, 50]), strict=True):
        engine.add_request(Request(name, tuple(prompt), SamplingParams(max_tokens=20, ignore_eos=True)))
    for _ in range(6):
        engine.step()
    engine.abort("b")
    while engine.has_unfinished:
        engine.step()
    proposer = engine.speculation.proposer
    proposer.check_integrity()
    assert not proposer._shadows
    assert proposer._blocks.usage == 0


def test_a_draft_model_has_the_same_tokens(tmp_path):
    from lmworks.models.hub import save_pretrained

    save_pretrained(tiny_model(vocab_size=VOCABULARY + 5), tmp_path / "model")
    byte_tokenizer().save(tmp_path / "model")
    speculative = SpeculativeConfig(method="draft_model", model=str(tmp_path / "model"))
    with pytest.raises(ConfigError, match=r"vocabulary \(264 tokens\) is not the model's \(259 tokens\)"):
        LLM(tiny_model(), byte_tokenizer(), config(speculative_config=speculative))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "draft_model"}, "needs a model"),
        ({"method": "ngram", "model": "x"}, "needs a model"),
        ({"method": "ngram", "prompt_lookup_min": 5}, "prompt_lookup_min 5 exceeds prompt_lookup_max 4"),
    ],
)
def test_settings_that_contradict_each_other(values, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig.parse({"speculative_config": values})


def test_guesses_do_not_reach_beyond_the_context():
    model, (prompt,) = tiny_model("gpt2", max_position_embeddings=32), random_prompts([9])
    llm = LLM(model, config=config(speculative_config=NGRAM))
    params = SamplingParams(temperature=0, ignore_eos=True, logit_bias={50: 100.0})
    assert llm.generate([prompt], params)[0].outputs[0].token_ids == (50,) * 23
    assert llm.stats().spec_decode_num_accepted_tokens_total > 10


def test_guesses_that_a_grammar_forbids_are_not_verified():
    class OnlyEven:
        taken = 0

        def accept(self, token_id):
            self.taken += token_id % 2 == 0
            return token_id % 2 == 0

        def rollback(self, number):
            self.taken -= number

    sequence = Sequence(Request("r", (1,), SamplingParams()), 0, (1,), 100, constraint=OnlyEven())
    assert allowed(sequence, [2, 4, 5, 6]) == [2, 4]
    assert sequence.constraint.taken == 0
