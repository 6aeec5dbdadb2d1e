"""Sampled tokens follow the distribution that transformers' own processors compute, whatever the rest of the batch."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine import BOS, VOCABULARY, byte_tokenizer
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from lmworks.core.errors import RequestError
from lmworks.core.sampling import SamplingParams
from lmworks.engine.decoding import sampler, truncation
from lmworks.engine.decoding.logits_processors import TokenCounts, bad_word_ids, logits_rules
from lmworks.engine.decoding.sampler import prompt_logprobs, sample, uniform
from lmworks.engine.decoding.truncation import draw
from lmworks.engine.request import Request
from lmworks.engine.scheduling.sequence import Sequence, Status

V = 40
PROMPT, OUTPUT = (1, 2, 3), (3, 3, 9)
EOS = frozenset({0})
TOKENIZER = byte_tokenizer()


def sequence(params: SamplingParams, seed=0, prompt=PROMPT, output=(), vocabulary=V, index=0) -> Sequence:
    s = Sequence(Request("r", tuple(prompt), params), index, tuple(prompt), 100, seed)
    s.token_ids += output
    s.status = Status.RUNNING
    s.logits_rules = logits_rules(params, EOS, TOKENIZER, vocabulary)
    return s


def one(params: SamplingParams, logits=None, **kwargs):
    """What is chosen for a single row."""
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(1)) if logits is None else logits
    return sample(logits, [sequence(params, vocabulary=logits.shape[-1], **kwargs)])[0]


def reference_probs(logits: torch.Tensor, p: SamplingParams, output=()) -> torch.Tensor:
    """[V], by transformers' processors in vLLM's order; what it has no processor for, by the formula."""
    x = logits.clone()[None]
    if p.allowed_token_ids:
        x[0, [i for i in range(V) if i not in p.allowed_token_ids]] = -math.inf
    if len(output) < p.min_tokens:
        x[0, [*EOS, *p.stop_token_ids]] = -math.inf
    for token, bias in p.logit_bias.items():
        x[0, token] += max(-100, min(100, bias))
    x = RepetitionPenaltyLogitsProcessor(p.repetition_penalty)(torch.tensor([[*PROMPT, *output]]), x)
    for token, count in Counter(output).items():
        x[0, token] -= p.frequency_penalty * count + p.presence_penalty
    return truncated(x, p)[0]


def truncated(x: torch.Tensor, p: SamplingParams) -> torch.Tensor:
    """[1, V] logits -> probabilities after temperature and cuts."""
    chain = [TemperatureLogitsWarper(p.temperature)]
    chain += [TypicalLogitsWarper(p.typical_p)] if p.typical_p < 1 else []
    chain += [MinPLogitsWarper(p.min_p)] if p.min_p else []
    chain += [TopKLogitsWarper(p.top_k)] if p.top_k > 0 else []
    chain += [TopPLogitsWarper(p.top_p)] if p.top_p < 1 else []
    for warper in chain:
        x = warper(None, x)
    return x.double().softmax(-1)


PARAMS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 5},
    "top_k of all": {"top_k": -1},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.1},
    "typical": {"typical_p": 0.6},
    "all cuts": {"temperature": 1.3, "typical_p": 0.95, "top_k": 20, "top_p": 0.8, "min_p": 0.02},
    "repetition": {"repetition_penalty": 1.8},
    "frequency": {"frequency_penalty": 0.9, "presence_penalty": -0.5},
    "bias": {"logit_bias": {3: 2.5, 7: -500.0}},
    "allowed": {"allowed_token_ids": (3, 5, 8, 13, 21), "top_p": 0.9},
    "min_tokens": {"min_tokens": 4, "stop_token_ids": (11, 12), "logit_bias": {0: 5.0, 11: 5.0}},
    "everything": {"allowed_token_ids": tuple(range(0, V, 2)), "min_tokens": 9, "logit_bias": {4: 1.5},
                   "repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2, "temperature": 0.8,
                   "top_k": 12, "top_p": 0.95, "min_p": 0.01},
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMS)
def test_ten_thousand_draws_follow_the_distribution(name):
    params, draws = SamplingParams(**PARAMS[name]), 10_000
    logits = torch.randn(V, generator=torch.Generator().manual_seed(5)) * 1.5
    one_of_them = sequence(params, output=OUTPUT)
    rows = [SimpleNamespace(params=params, seed=seed, index=0, token_ids=one_of_them.token_ids, num_prompt_tokens=3,
                            num_output_tokens=3, constraint=None, logits_rules=one_of_them.logits_rules)
            for seed in range(draws)]  # fmt: skip
    tokens = [t for t, _ in sample(logits.expand(draws, V), rows)]
    expected = reference_probs(logits, params, OUTPUT) * draws
    counts = torch.bincount(torch.tensor(tokens), minlength=V).double()
    assert counts[expected == 0].sum() == 0, "a token that was cut off was drawn"
    kept = expected > 0
    statistic = ((counts - expected)[kept].square() / expected[kept]).sum().item()
    # Mean k-1 and, cells being unequal, variance 2(k-1) + Σ 1/expected; five standard deviations.
    freedom = kept.sum().item() - 1
    assert statistic <= freedom + 5 * math.sqrt(2 * freedom + (1 / expected[kept]).sum().item())


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    temperature=st.floats(0.3, 2.0),
    typical_p=st.sampled_from([1.0, 0.3, 0.9]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    top_k=st.sampled_from([0, 1, 7, 30, 500]),
    top_p=st.sampled_from([1.0, 0.2, 0.9, 0.999]),
    candidates=st.sampled_from([2, 8, 64]),
    block=st.sampled_from([7, 20, 256]),
    near=st.sampled_from([1, 2**19, 2**24]),
)
def test_each_token_owns_the_share_of_the_unit_interval_that_transformers_gives_it(
    seed, temperature, typical_p, min_p, top_k, top_p, candidates, block, near
):
    logits = torch.randn(1, 60, generator=torch.Generator().manual_seed(seed)) * 2
    params = SamplingParams(temperature=temperature, typical_p=typical_p, min_p=min_p, top_k=top_k, top_p=top_p)
    expected = truncated(logits, params)[0] * (draws := 400)
    numbers = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truncation, "CANDIDATES", candidates)
        patch.setattr(truncation, "BLOCK", block)
        patch.setattr(truncation, "NEAR", near)
        drawn = draw((logits / temperature).softmax(-1).repeat(draws, 1), [params] * draws, numbers)
    owned = torch.bincount(drawn, minlength=60)
    assert (owned - expected).abs().max() <= 1.01, "an interval holds its length in points, give or take one"
    assert owned[expected == 0].sum() == 0


def test_tokens_as_likely_as_the_last_of_the_top_k_are_kept_with_it():
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, 1.0, -3.0]])
    params = SamplingParams(top_k=2)
    numbers = torch.linspace(0, 0.999, 200, dtype=torch.float64)
    for candidates in (2, 3, 256):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(truncation, "CANDIDATES", candidates)
            drawn = draw(logits.softmax(-1).repeat(200, 1), [params] * 200, numbers)
        assert set(drawn.tolist()) == set(truncated(logits, params)[0].nonzero().flatten().tolist()) == {1, 2, 3, 4}


def test_each_row_follows_its_own_parameters_in_any_company():
    torch.manual_seed(0)
    mixed = [SamplingParams(seed=0, logprobs=i % 4 or None, **p) for i, p in enumerate(PARAMS.values())]
    mixed += [SamplingParams(temperature=0), SamplingParams(temperature=0, logit_bias={5: 100.0})]
    logits = torch.randn(len(mixed), V) * 2
    rows = [sequence(p, seed=i, output=OUTPUT) for i, p in enumerate(mixed)]
    together = sample(logits, rows)
    alone = [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    backwards = sample(logits.flip(0), rows[::-1])[::-1]
    assert together == alone == backwards
    assert [token for token, _ in together[-2:]] == [logits[-2].argmax().item(), 5]


def test_logits_are_not_changed_and_logprobs_are_those_of_the_raw_logits():
    logits = torch.randn(1, V)
    before = logits.clone()
    params = SamplingParams(temperature=0, logit_bias={4: 100.0}, logprobs=3, repetition_penalty=2.0)
    token, logprob = one(params, logits)
    assert torch.equal(logits, before)
    expected = logits[0].log_softmax(-1)
    assert token == 4
    assert logprob.logprob == pytest.approx(expected[4].item(), abs=1e-6)
    assert [t for t, _ in logprob.top] == expected.topk(3).indices.tolist()
    assert one(SamplingParams(logprobs=0), logits)[1].top == ()


def test_a_prompts_logprobs_are_those_of_its_tokens(monkeypatch):
    monkeypatch.setattr(sampler, "HELD", 3 * V)
    logits, targets = torch.randn(8, V), list(range(8))
    got = prompt_logprobs(logits, targets, 2)
    expected = logits.log_softmax(-1)
    assert [x.token_id for x in got] == targets
    assert [x.logprob for x in got] == pytest.approx([expected[i, i].item() for i in targets], abs=1e-6)
    assert [[t for t, _ in x.top] for x in got] == expected.topk(2).indices.tolist()
    assert prompt_logprobs(logits[:0], [], 2) == []


def test_a_plain_greedy_batch_is_an_argmax_and_nothing_more(monkeypatch):
    for name in ("process", "draw", "uniform", "prompt_logprobs"):
        monkeypatch.setattr(sampler, name, None)
    logits = torch.randn(4, V)
    rows = [sequence(SamplingParams(temperature=0)) for _ in range(4)]
    assert [t for t, _ in sample(logits, rows)] == logits.argmax(-1).tolist()
    assert all(row.logits_rules is None for row in rows)


def test_a_tiny_temperature_is_greedy_and_finite():
    logits = torch.randn(50, V) * 30
    rows = [sequence(SamplingParams(temperature=1e-9), seed=i) for i in range(50)]
    assert [t for t, _ in sample(logits, rows)] == logits.argmax(-1).tolist()


def test_random_numbers_are_uniform_and_distinct():
    numbers = [uniform(seed, index, place) for seed in (-1, 0, 2**80) for index in range(10) for place in range(100)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= x < 1 for x in numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.03


# --- what may not come ---------------------------------------------------------------------------------------------


def test_the_last_token_of_a_bad_word_may_not_come_after_the_ones_before():
    words = SamplingParams(temperature=0, bad_words=("cat", " x"))
    z = torch.zeros(1, VOCABULARY)
    (a,), (t,), (c,), (x,) = (TOKENIZER.encode(letter) for letter in "atcx")

    def next_token(favored, said, prompt=(BOS,)):
        params = words.model_copy(update={"logit_bias": {favored: 50.0}})
        return one(params, z, prompt=prompt, output=TOKENIZER.encode(said))[0]

    assert next_token(t, "ca") != t
    assert next_token(t, "the ca") != t
    assert next_token(t, "c") == next_token(t, "") == next_token(t, "cab") == t
    assert next_token(t, "", prompt=(BOS, c, a)) == t, "only what was generated can begin a bad word"
    assert next_token(x, "any") != x, "a word of one token never comes"


def test_bad_words_are_forbidden_with_and_without_a_space_before():
    assert bad_word_ids(["ab"], TOKENIZER) == (tuple(TOKENIZER.encode("ab")), tuple(TOKENIZER.encode(" ab")))
    assert bad_word_ids([" ab", "ab"], TOKENIZER) == bad_word_ids(["ab"], TOKENIZER)
    with pytest.raises(RequestError, match=r"bad_words .* need a tokenizer"):
        bad_word_ids(["ab"], None)


def test_impossible_token_ids_are_named():
    for name, value in (("allowed_token_ids", (5, V)), ("logit_bias", {-1: 2.0}), ("stop_token_ids", (V,))):
        with pytest.raises(RequestError, match=f"in {name} is outside the vocabulary of {V}"):
            logits_rules(SamplingParams(**{name: value}), EOS, None, V)


class Grammar:
    """A constraint that allows some tokens, in a mask as wide as whole words."""

    def __init__(self, allowed):
        bits = torch.zeros(64, dtype=torch.bool)
        bits[list(allowed)] = True
        self._mask = torch.tensor(
            [sum(1 << i for i in range(32) if bits[32 * w + i]) - (1 << 32) * bits[32 * w + 31].item()
             for w in range(2)],
            dtype=torch.int32,
        )  # fmt: skip

    def mask(self):
        return self._mask


def test_a_grammars_mask_bounds_its_row_alone():
    logits = torch.randn(3, V)
    rows = [sequence(SamplingParams(temperature=0)) for _ in range(3)]
    rows[1].constraint = Grammar({0, 31, 32, 39})
    tokens = [t for t, _ in sample(logits, rows)]
    assert tokens[1] == max({0, 31, 32, 39}, key=lambda t: logits[1, t].item())
    assert [tokens[0], tokens[2]] == logits[[0, 2]].argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_no_token_left_fails_alone(temperature):
    logits = torch.randn(3, V)
    impossible = SamplingParams(temperature=temperature, allowed_token_ids=(0,), min_tokens=5, top_p=0.9, logprobs=1)
    rows = [sequence(SamplingParams(temperature=0)), sequence(impossible, output=(7, 7)), sequence(SamplingParams())]
    first, error, last = sample(logits, rows)
    assert first == (logits[0].argmax().item(), None)
    assert last == sample(logits[2:], rows[2:])[0]
    assert isinstance(error, RequestError)
    assert "after 2 tokens no token may come next: min_tokens, allowed_token_ids together forbid all" in str(error)


def test_a_minimum_length_ends_when_it_is_reached():
    params = SamplingParams(temperature=0, min_tokens=2, logit_bias={0: 90.0})
    assert one(params, output=(5,))[0] != 0
    assert one(params, output=(5, 5))[0] == 0


@given(
    prompt=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    steps=st.lists(st.lists(st.integers(0, 150), max_size=8), max_size=40),
)
def test_counts_follow_the_tokens_that_come(prompt, steps):
    counts, tokens = TokenCounts(), list(prompt)
    for more in [[], *steps]:
        tokens += more
        ids, generated = counts.of(SimpleNamespace(token_ids=tokens, num_prompt_tokens=len(prompt)))
        output = Counter(tokens[len(prompt) :])
        assert dict(zip(ids.tolist(), generated.tolist(), strict=True)) == {t: output[t] for t in tokens}
