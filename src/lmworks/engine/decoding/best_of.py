"""The `n` best of `best_of` completions, by the log-probability of their tokens. Knows no engine."""

from __future__ import annotations

from dataclasses import replace

from lmworks.core.generation import RequestOutput
from lmworks.core.sampling import SamplingParams


def generated_params(params: SamplingParams) -> SamplingParams:
    """What an engine is asked for, so that `best_of` can choose: as many completions, with log-probabilities."""
    if params.best_of is None or params.best_of == params.n:
        return params
    logprobs = 0 if params.logprobs is None else params.logprobs
    return params.model_copy(update={"n": params.best_of, "best_of": None, "logprobs": logprobs})


def best_of(output: RequestOutput, params: SamplingParams) -> RequestOutput:
    """The likeliest `params.n` of what `generated_params(params)` gave, best first."""
    if params.best_of is None or params.best_of == params.n:
        return output
    ranked = sorted(output.outputs, key=lambda o: -(o.cumulative_logprob or 0.0))[: params.n]
    if params.logprobs is None:
        ranked = [replace(completion, logprobs=None) for completion in ranked]
    return replace(output, outputs=tuple(ranked))
