"""Beam search finds what transformers' finds, and in groups what the paper's definition says."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from test_engine_transformers_parity import hf_model
from tiny_engine import random_prompts

from lmworks.core.sampling import BeamSearchParams
from lmworks.engine import LLM, EngineConfig
from lmworks.engine.decoding.beam_search import BeamSearch
from lmworks.models.hub import load_pretrained

V, EOS = 9, 0
PAD = 300


def toy_logprobs(prefix: tuple[int, ...]) -> torch.Tensor:
    """[V]: a language model of nine tokens that remembers everything."""
    seed = sum((token + 1) * 31**place for place, token in enumerate(prefix)) % 2**31
    return (torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 1.5).log_softmax(-1)


def search(params: BeamSearchParams, eos=(EOS,)) -> BeamSearch:
    """Run to the end on the toy model, telling no more than is asked for."""
    state = BeamSearch(params, eos)
    while state.prefixes:
        best = [toy_logprobs(p).topk(min(V, state.sampling_params.logprobs)) for p in state.prefixes]
        state.advance([list(zip(b.indices.tolist(), b.values.tolist(), strict=True)) for b in best])
    return state


def diverse_reference(width: int, groups: int, penalty: float, steps: int) -> list[list[tuple[int, ...]]]:
    """Algorithm 1 of arXiv:1610.02424 with Hamming diversity, over all continuations, no token ending anything."""
    beams: list[dict[tuple[int, ...], float]] = [{(): 0.0} for _ in range(groups)]
    for _ in range(steps):
        said: list[int] = []
        for g in range(groups):
            scores = {
                (*prefix, token): score + toy_logprobs(prefix)[token].item() - penalty * said.count(token)
                for (prefix, score), token in product(beams[g].items(), range(V))
            }
            kept = sorted(scores, key=lambda y: -scores[y])[: width // groups]
            beams[g] = {y: scores[y] for y in kept}
            said += [y[-1] for y in kept]
    return [list(group) for group in beams]


@pytest.mark.parametrize("penalty", [0.0, 0.7, 5.0])
@pytest.mark.parametrize(("width", "groups"), [(4, 2), (6, 3), (4, 4)])
def test_groups_differ_as_the_paper_defines(width, groups, penalty):
    params = BeamSearchParams(beam_width=width, max_tokens=5, num_beam_groups=groups, diversity_penalty=penalty,
                              ignore_eos=True, length_penalty=0.0)  # fmt: skip
    found = sorted(beam.token_ids for beam in search(params).beams)
    assert found == sorted(y for group in diverse_reference(width, groups, penalty, 5) for y in group)


def test_diversity_makes_groups_begin_differently():
    def beginnings(penalty):
        params = BeamSearchParams(beam_width=4, max_tokens=4, num_beam_groups=4, diversity_penalty=penalty)
        return {beam.token_ids[0] for beam in search(params, eos=()).beams}

    assert (len(beginnings(0.0)), len(beginnings(50.0))) == (1, 4)


def test_a_beam_as_wide_as_all_completions_finds_the_likeliest():
    params = BeamSearchParams(beam_width=64, max_tokens=2, length_penalty=0.0, early_stopping="never")
    everything = {}
    for first in range(V):
        if first == EOS:
            everything[(EOS,)] = toy_logprobs(())[EOS].item()
            continue
        for second in range(V):
            everything[first, second] = (toy_logprobs(())[first] + toy_logprobs((first,))[second]).item()
    best = sorted(everything, key=lambda y: -everything[y])[:10]
    beams = search(params).beams
    assert [b.token_ids for b in beams[:10]] == best
    assert [b.cumulative_logprob for b in beams[:10]] == pytest.approx([everything[y] for y in best])
    assert {b.finish_reason for b in beams} == {"stop", "length"}


def test_the_context_bounds_the_search():
    params = BeamSearchParams(beam_width=2, max_tokens=50, ignore_eos=True)
    state = BeamSearch(params, (EOS,), max_tokens=3)
    while state.prefixes:
        state.advance([[(5, -0.1), (6, -2.0)] for _ in state.prefixes])
    assert [len(beam.token_ids) for beam in state.beams] == [3, 3]


@pytest.mark.parametrize(("early_stopping", "best"), [(True, (0,)), (False, (0,)), ("never", (5, 0))])
def test_never_stopping_early_waits_for_what_length_could_make_better(early_stopping, best):
    state = BeamSearch(BeamSearchParams(beam_width=1, max_tokens=4, early_stopping=early_stopping), (EOS,))
    state.advance([[(EOS, -1.0), (5, -1.5)]])
    while state.prefixes:
        state.advance([[(EOS, -0.01), (6, -5.0)]])
    assert state.beams[0].token_ids == best


def test_a_temperature_is_said_to_have_no_effect(caplog):
    BeamSearch(BeamSearchParams(beam_width=2, max_tokens=1, temperature=0.7), ())
    assert "temperature 0.7 has no effect" in caplog.text


# --- the engine ----------------------------------------------------------------------------------------------------

SETTINGS = {
    "plain": {},
    "wide": {"beam_width": 12},
    "one": {"beam_width": 1},
    "early": {"early_stopping": True},
    "never": {"early_stopping": "never"},
    "long": {"length_penalty": 2.0, "early_stopping": "never"},
    "short": {"length_penalty": -1.0},
    "no penalty": {"length_penalty": 0.0},
}


@pytest.fixture(scope="module", params=[1, 40, 130], ids=lambda ends: f"{ends} ends")
def models(request, tmp_path_factory):
    """Transformers' model with few end tokens or many, and ours read from its folder."""
    folder = tmp_path_factory.mktemp("beams")
    theirs = hf_model("llama")
    theirs.config.eos_token_id = theirs.generation_config.eos_token_id = list(range(request.param))
    theirs.save_pretrained(folder)
    config = EngineConfig(block_size=4, max_num_seqs=16, max_num_batched_tokens=64)
    return theirs, LLM(load_pretrained(folder), config=config)


@pytest.mark.parametrize("name", SETTINGS)
def test_beams_and_scores_are_those_of_transformers(name, models):
    theirs, ours = models
    eos = theirs.config.eos_token_id
    params = BeamSearchParams(**{"beam_width": 4, "max_tokens": 12, **SETTINGS[name]})
    for prompt in random_prompts([7, 7], seed=len(eos)):
        expected = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            num_beams=params.beam_width, num_return_sequences=params.beam_width, max_new_tokens=params.max_tokens,
            length_penalty=params.length_penalty, early_stopping=params.early_stopping, eos_token_id=eos,
            pad_token_id=PAD, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        (output,) = ours.beam_search([prompt], params)
        assert [c.token_ids for c in output.outputs] == [cut(row[7:].tolist()) for row in expected.sequences]
        if params.beam_width > 1:  # one beam is greedy there, and has no score
            scores = [c.cumulative_logprob / len(c.token_ids) ** params.length_penalty for c in output.outputs]
            assert scores == pytest.approx(expected.sequences_scores.tolist(), abs=1e-4)


def cut(tokens: list[int]) -> tuple[int, ...]:
    """Without padding."""
    return tuple(token for token in tokens if token != PAD)
