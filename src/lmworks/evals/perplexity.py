"""Bits per byte of documents: how many bits a model needs for each byte of text it has not seen.

Unlike perplexity per token it compares models whatever their tokenizers. A document's text alone counts: the
begin-of-document token is context, its end is neither predicted nor paid for. Knows no tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lmworks.core.errors import EvalError
from lmworks.core.generation import Scorer
from lmworks.evals.task import Outcome, Passage

BATCH = 16
"""Documents per call, so that progress shows."""


def bits_per_byte(scorer: Scorer, passages: Sequence[Passage], advance: Callable[[float], None]) -> Outcome:
    """Score each passage as a document of its own.

    Args:
        scorer: the model.
        passages: documents, none empty.
        advance: told how many passages were done.

    Returns:
        Bits per passage under `bits_per_byte`, with UTF-8 bytes as sizes: the metric is sum over sum.

    Raises:
        EvalError: the model gave a log-likelihood that is not a finite number.
    """
    bits: list[float] = []
    for start in range(0, len(passages), BATCH):
        batch = passages[start : start + BATCH]
        for passage, result in zip(batch, scorer.loglikelihood([("", p.text) for p in batch]), strict=True):
            bits.append(-finite(result.logprob, passage.text) / math.log(2))
        advance(len(batch))
    return Outcome({"bits_per_byte": tuple(bits)}, tuple(float(len(p.text.encode())) for p in passages))


def finite(logprob: float, text: str) -> float:
    """The log-probability itself, if it is a number a model may give.

    Raises:
        EvalError: it is infinite or not a number; every later figure would be, too.
    """
    if not math.isfinite(logprob):
        raise EvalError(
            f"the model gave log-probability {logprob} to the text {text[:60]!r}",
            "Its weights are damaged or its training diverged: check the loss curve",
        )
    return logprob
