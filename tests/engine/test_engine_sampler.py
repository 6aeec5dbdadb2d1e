"""Sampled tokens follow the distribution that a plain reference computes, whatever the rest of the batch."""

from __future__ import annotations

import math

import pytest
import torch

from lmworks.core.sampling import SamplingParams
from lmworks.engine import truncation
from lmworks.engine.request import Request
from lmworks.engine.sampler import sample, uniform
from lmworks.engine.sequence import Sequence, Status

V = 40


def sequence(params: SamplingParams, seed=0, prompt=(1, 2, 3), output=()) -> Sequence:
    s = Sequence(Request("r", tuple(prompt), params), 0, tuple(prompt), 100, seed)
    s.token_ids += output
    s.status = Status.RUNNING
    return s


def reference_probs(logits: list[float], p: SamplingParams, prompt, output) -> list[float]:
    """Token by token, in vLLM's order of operations."""
    x = [value + p.logit_bias.get(i, 0) for i, value in enumerate(logits)]
    for i in {*prompt, *output}:
        x[i] = x[i] / p.repetition_penalty if x[i] > 0 else x[i] * p.repetition_penalty
    for i in set(output):
        x[i] -= p.frequency_penalty * list(output).count(i) + p.presence_penalty
    x = [math.exp(value / p.temperature) for value in x]
    probs = [value / sum(x) for value in x]
    probs = [v if v >= p.min_p * max(probs) else 0.0 for v in probs]
    order = sorted(range(len(probs)), key=lambda i: -probs[i])
    for i in order[p.top_k :] if p.top_k else []:
        probs[i] = 0.0
    total, before = sum(probs), 0.0
    for i in order:
        before, probs[i] = before + probs[i], probs[i] if before < p.top_p * total else 0.0
    return [v / sum(probs) for v in probs]


PARAMS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.1},
    "all cuts": {"temperature": 1.3, "top_k": 20, "top_p": 0.8, "min_p": 0.02},
    "repetition": {"repetition_penalty": 1.8},
    "frequency": {"frequency_penalty": 0.9, "presence_penalty": -0.5},
    "bias": {"logit_bias": {3: 2.5, 7: -100}},
}


@pytest.mark.parametrize("candidates", [4, 256], ids=["few candidates", "all candidates"])
@pytest.mark.parametrize("name", PARAMS)
def test_distribution(name, candidates, monkeypatch):
    monkeypatch.setattr(truncation, "CANDIDATES", candidates)
    params, output = SamplingParams(**PARAMS[name]), (3, 3, 9)
    logits = torch.randn(V, generator=torch.Generator().manual_seed(5)) * 1.5
    draws = 2000
    rows = [sequence(params, seed, output=output) for seed in range(draws)]
    tokens = [t for t, _ in sample(logits.expand(draws, V).clone(), rows)]
    expected = torch.tensor(reference_probs(logits.tolist(), params, (1, 2, 3), output)) * draws
    counts = torch.bincount(torch.tensor(tokens), minlength=V).double()
    assert counts[expected == 0].sum() == 0, "a token that was cut off was drawn"
    kept = expected > 0
    statistic = ((counts - expected)[kept].square() / expected[kept]).sum().item()
    # Mean k-1 and, cells being unequal, variance 2(k-1) + Σ 1/expected; five standard deviations.
    freedom = kept.sum().item() - 1
    assert statistic <= freedom + 5 * math.sqrt(2 * freedom + (1 / expected[kept]).sum().item())


def test_each_row_follows_its_own_parameters_in_any_company():
    torch.manual_seed(0)
    mixed = [SamplingParams(seed=0, **p) for p in PARAMS.values()] + [SamplingParams(temperature=0)]
    logits = torch.randn(len(mixed), V) * 2
    rows = [sequence(p, seed=i) for i, p in enumerate(mixed)]
    together = sample(logits, rows)
    alone = [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    assert together == alone
    assert together[-1][0] == logits[-1].argmax().item()


def test_logits_are_not_changed_and_logprobs_are_those_of_the_raw_logits():
    logits = torch.randn(1, V)
    before = logits.clone()
    params = SamplingParams(temperature=0, logit_bias={4: 100.0}, logprobs=3, repetition_penalty=2.0)
    ((token, logprob),) = sample(logits, [sequence(params)])
    assert torch.equal(logits, before)
    expected = logits[0].log_softmax(-1)
    assert token == 4
    assert logprob.logprob == pytest.approx(expected[4].item(), abs=1e-6)
    assert [t for t, _ in logprob.top] == expected.topk(3).indices.tolist()


def test_a_tiny_temperature_is_greedy_and_finite():
    logits = torch.randn(50, V) * 30
    rows = [sequence(SamplingParams(temperature=1e-9), seed=i) for i in range(50)]
    assert [t for t, _ in sample(logits, rows)] == logits.argmax(-1).tolist()


def test_random_numbers_are_uniform_and_distinct():
    numbers = [uniform(seed, index, place) for seed in (-1, 0, 2**80) for index in range(10) for place in range(100)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= x < 1 for x in numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.03
