"""Multiple choice by log-likelihood: the choice the model finds likeliest is its answer, as in lm-evaluation-harness.

`acc` compares log p(choice | context) as it is; `acc_norm` divides it by the choice's UTF-8 bytes, which takes
away the advantage of short choices. Knows no task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lmworks.core.generation import Scorer
from lmworks.evals.perplexity import finite
from lmworks.evals.task import Outcome, Question

BATCH = 8
"""Questions per call, so that progress shows."""


def multiple_choice(scorer: Scorer, questions: Sequence[Question], advance: Callable[[float], None]) -> Outcome:
    """Whether the right choice is the likeliest, 1 or 0 per question, under `acc` and `acc_norm`.

    Args:
        scorer: the model.
        questions: each with at least two choices.
        advance: told how many questions were done.

    Raises:
        EvalError: the model gave a log-likelihood that is not a finite number.
    """
    acc: list[float] = []
    acc_norm: list[float] = []
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        results = iter(scorer.loglikelihood([(q.context, choice) for q in batch for choice in q.choices]))
        for question in batch:
            scores = [finite(next(results).logprob, choice) for choice in question.choices]
            acc.append(float(_likeliest(scores) == question.answer))
            per_byte = [s / len(c.strip().encode()) for s, c in zip(scores, question.choices, strict=True)]
            acc_norm.append(float(_likeliest(per_byte) == question.answer))
        advance(len(batch))
    return Outcome({"acc": tuple(acc), "acc_norm": tuple(acc_norm)})


def _likeliest(scores: Sequence[float]) -> int:
    """The place of the highest score; the first of equals."""
    return max(range(len(scores)), key=scores.__getitem__)
