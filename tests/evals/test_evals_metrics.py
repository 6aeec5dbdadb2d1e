"""Bits per byte in closed form, multiple choice by hand, generation with scripted answers."""

import math

import pytest

from lmworks.core.errors import EvalError
from lmworks.core.generation import CompletionOutput, LogLikelihood
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams
from lmworks.evals.generation import generate_until
from lmworks.evals.likelihood import multiple_choice
from lmworks.evals.perplexity import bits_per_byte
from lmworks.evals.scores import compare, score
from lmworks.evals.task import Outcome, Passage, Prompt, Question


class Progress:
    def __init__(self):
        self.done = 0

    def __call__(self, amount):
        self.done += amount


def test_bits_per_byte_is_the_models_cost_over_utf8_bytes(byte_model):
    # "oboe": o costs 3 (nothing before), b 1 (after o), o 3 (after b), e 1 (after o). "é" is two bytes after no vowel.
    texts, progress = ["oboe", "é"] * 10, Progress()
    outcome = bits_per_byte(byte_model(), [Passage(t) for t in texts], progress)
    assert outcome.figures["bits_per_byte"] == pytest.approx((8.0, 6.0) * 10)
    assert outcome.sizes == (4.0, 2.0) * 10
    assert progress.done == 20
    (found,) = score("m", "bits-per-byte", outcome, None, seed=0)
    assert found.value == pytest.approx((8 + 6) / (4 + 2))
    assert found.low < found.value < found.high
    assert not found.higher_is_better


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_figures_that_are_no_numbers_are_refused(value):
    class Broken:
        def loglikelihood(self, pairs):
            return [LogLikelihood(value, 1, False) for _ in pairs]

    with pytest.raises(EvalError, match=r"log-probability (-inf|nan).*'some text'"):
        bits_per_byte(Broken(), [Passage("some text")], lambda n: None)
    with pytest.raises(EvalError, match="diverged"):
        multiple_choice(Broken(), [Question("c", (" a", " b"), 0)], lambda n: None)


def test_the_likeliest_choice_is_the_answer_and_bytes_normalize():
    class Table:
        logprobs = {" yes": -4.0, " certainly": -6.0, " né": -3.5}

        def loglikelihood(self, pairs):
            return [LogLikelihood(self.logprobs[choice], 1, False) for _, choice in pairs]

    # per byte: yes -4/3, certainly -6/9, né (3 bytes) -3.5/3
    questions = [Question("q", (" yes", " certainly", " né"), answer) for answer in range(3)]
    outcome = multiple_choice(Table(), questions, lambda n: None)
    assert outcome.figures["acc"] == (0.0, 0.0, 1.0)
    assert outcome.figures["acc_norm"] == (0.0, 1.0, 0.0)


def test_generation_grades_every_answer_and_keeps_it(byte_model):
    prompts = [Prompt(f"p{i}", ("yes",)) for i in range(40)]
    model = byte_model({"p3": CompletionOutput("no", (2,), "length")})
    progress = Progress()
    outcome = generate_until(
        model, prompts, lambda p, s: {"hit": s.answer in p.references}, SamplingParams(max_tokens=3), progress
    )
    assert sum(outcome.figures["hit"]) == 39
    assert (outcome.samples[3].prompt, outcome.samples[3].answer, outcome.samples[3].finish_reason) == (
        "p3",
        "no",
        "length",
    )
    assert progress.done == 40
    assert all(params.max_tokens == 3 for params in model.params)


def test_a_prompt_that_does_not_fit_is_answered_with_nothing_and_spares_the_others(byte_model):
    conversations = [(Message(role="user", content=text),) for text in ("fine", "TOO LONG", "fine too")]
    outcome = generate_until(
        byte_model(),
        [Prompt(c) for c in conversations],
        lambda p, s: {"said": bool(s.answer)},
        SamplingParams(),
        Progress(),
    )
    assert outcome.figures["said"] == (1.0, 0.0, 1.0)
    assert outcome.samples[1].finish_reason == "length"


def test_the_clean_value_leaves_overlapping_items_out():
    outcome = Outcome({"bits_per_byte": (2.0, 30.0, 4.0)}, (1.0, 10.0, 1.0))
    (found,) = score("m", "t", outcome, (False, True, False), seed=0)
    assert found.value == 3.0
    assert found.clean_value == 3.0
    (found,) = score("m", "t", outcome, (True, False, False), seed=0)
    assert found.clean_value == pytest.approx(34 / 11)
    (found,) = score("m", "t", outcome, (True, True, True), seed=0)
    assert found.clean_value is None


def test_others_are_compared_with_the_first():
    outcomes = {
        name: Outcome({"acc": values}) for name, values in (("a", (1.0, 0.0)), ("b", (1.0, 1.0)), ("c", (0.0, 0.0)))
    }
    found = compare("t", outcomes, seed=0)
    assert [(c.model, c.against, c.difference) for c in found] == [("b", "a", 0.5), ("c", "a", -0.5)]
    assert compare("t", {}, seed=0) == []
