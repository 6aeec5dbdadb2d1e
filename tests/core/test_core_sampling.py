"""Decoding parameters take what vLLM's take, and refuse what cannot be meant."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lmworks.core.sampling import BeamSearchParams, SamplingParams, StructuredOutputs


def test_one_string_is_a_list_of_one():
    params = SamplingParams(stop="END", bad_words=["a", "b"])
    assert params.stop == ("END",)
    assert params.bad_words == ("a", "b")


WRONG = {
    "best_of below n": ({"n": 4, "best_of": 3}, "best_of 3 is below n 4"),
    "a minimum above the maximum": ({"min_tokens": 9, "max_tokens": 8}, "min_tokens 9 exceeds max_tokens 8"),
    "nothing allowed": ({"allowed_token_ids": ()}, "forbids every token"),
    "an empty bad word": ({"bad_words": ["a", " "]}, "one of bad_words is empty"),
    "not a number": ({"temperature": float("nan")}, "finite number"),
    "an infinite bias": ({"logit_bias": {3: float("inf")}}, "finite number"),
    "top_k below -1": ({"top_k": -2}, "greater than or equal to -1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_impossible_parameters_are_refused(name):
    values, message = WRONG[name]
    with pytest.raises(ValidationError, match=message):
        SamplingParams(**values)


WRONG_BEAMS = {
    "uneven groups": ({"beam_width": 5, "num_beam_groups": 2}, "5 is no multiple of num_beam_groups 2"),
    "diversity of one group": ({"beam_width": 4, "diversity_penalty": 0.5}, "needs num_beam_groups of at least 2"),
    "no beam": ({"beam_width": 0}, "greater than or equal to 1"),
    "an unknown way to stop": ({"beam_width": 2, "early_stopping": "soon"}, "early_stopping"),
}


@pytest.mark.parametrize("name", WRONG_BEAMS)
def test_impossible_searches_are_refused(name):
    values, message = WRONG_BEAMS[name]
    with pytest.raises(ValidationError, match=message):
        BeamSearchParams(max_tokens=4, **values)


def test_a_structure_is_exactly_one():
    with pytest.raises(ValidationError, match=r"give exactly one of .* not none"):
        StructuredOutputs()
    with pytest.raises(ValidationError, match=r"not \['regex', 'choice'\]"):
        StructuredOutputs(regex="a", choice=("a", "b"))
