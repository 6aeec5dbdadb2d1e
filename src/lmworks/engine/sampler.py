"""From logits to tokens, every row by its own request's parameters, in vLLM's order of operations.

The order is: log-probabilities of the raw logits; logit bias; repetition, frequency, presence penalty; greedy rows end
here; temperature; min-p; top-k; top-p; one draw.

A draw inverts the cumulative distribution at a number that is a function of the request's seed, the completion
and the place of the token. It depends on nothing else, so the same request gives the same answer alone, in any
batch, and after preemption. Knows no cache.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from hashlib import blake2b

import torch
from torch import Tensor

from lmworks.core.generation import TokenLogprob
from lmworks.core.sampling import SamplingParams
from lmworks.engine.sequence import Sequence

CANDIDATES = 256
"""Top-k, top-p and min-p first look at this many likeliest tokens: sorting a whole vocabulary is slow."""

MIN_TEMPERATURE = 1e-2
"""Lower positive temperatures are raised to this, as in vLLM: logits would overflow."""


@torch.inference_mode()
def sample(logits: Tensor, sequences: Rows[Sequence]) -> list[tuple[int, TokenLogprob | None]]:
    """Choose the next token of each sequence.

    Args:
        logits: [R, V] float32, finite.
        sequences: R of them; their tokens, parameters and seeds are read.

    Returns:
        Per row the token, and its log-probability if asked for.
    """
    adjusted = _adjust(logits, sequences)
    drawn = [i for i, s in enumerate(sequences) if s.params.temperature > 0]
    if len(drawn) < len(sequences):
        tokens = adjusted.argmax(-1)
        if drawn:
            tokens[drawn] = _draw(adjusted[drawn], [sequences[i] for i in drawn])
    else:
        tokens = _draw(adjusted, sequences)
    chosen: list[int] = tokens.tolist()
    return list(zip(chosen, _logprobs(logits, chosen, sequences), strict=True))


def uniform(seed: int, index: int, place: int) -> float:
    """A number in [0, 1): a function of a request's seed, the completion and the token's place in it."""
    digest = blake2b(f"{seed}:{index}:{place}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little") * 2.0**-48


def _adjust(logits: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """Bias and penalties; `logits` itself is returned where nobody asked for any and never changed."""
    changed = [i for i, s in enumerate(sequences) if _adjusts(s.params)]
    if not changed:
        return logits
    logits = logits.clone()
    for i in changed:
        row, params = logits[i], sequences[i].params
        if params.logit_bias:
            row[list(params.logit_bias)] += row.new_tensor(list(params.logit_bias.values())).clamp_(-100, 100)
        output = sequences[i].token_ids[sequences[i].num_prompt_tokens :]
        if params.repetition_penalty != 1:
            seen = list(set(sequences[i].token_ids))
            score = row[seen]
            row[seen] = torch.where(score > 0, score / params.repetition_penalty, score * params.repetition_penalty)
        if output and params.frequency_penalty:
            places = torch.tensor(output, device=row.device)
            row.index_add_(0, places, row.new_full((len(output),), -params.frequency_penalty))
        if output and params.presence_penalty:
            row[list(set(output))] -= params.presence_penalty
    return logits


def _adjusts(params: SamplingParams) -> bool:
    return bool(
        params.logit_bias or params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty
    )


def _draw(logits: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """[R, V], all rows with a positive temperature -> [R] tokens."""
    temperature = logits.new_tensor([max(s.params.temperature, MIN_TEMPERATURE) for s in sequences])
    probs = (logits / temperature[:, None]).softmax(-1)
    numbers = torch.tensor(
        [uniform(s.seed, s.index, s.num_output_tokens) for s in sequences], dtype=torch.float64, device=logits.device
    )
    cut = [i for i, s in enumerate(sequences) if s.params.top_k or s.params.top_p < 1 or s.params.min_p]
    if not cut:
        return _invert(probs, numbers)
    if len(cut) == len(sequences):
        return _draw_cut(probs, [s.params for s in sequences], numbers, CANDIDATES)
    tokens = _invert(probs, numbers)
    tokens[cut] = _draw_cut(probs[cut], [sequences[i].params for i in cut], numbers[cut], CANDIDATES)
    return tokens


def _draw_cut(probs: Tensor, params: Rows[SamplingParams], numbers: Tensor, candidates: int) -> Tensor:
    """Draw after min-p, top-k and top-p, from the `candidates` likeliest, or from all where those are too few."""
    vocabulary = probs.shape[-1]
    candidates = min(candidates, vocabulary)
    best, tokens = probs.topk(candidates)
    top_k = torch.tensor([p.top_k or vocabulary for p in params], device=probs.device)[:, None]
    top_p = probs.new_tensor([p.top_p for p in params])[:, None]
    min_p = probs.new_tensor([p.min_p for p in params])[:, None]
    rank = torch.arange(candidates, device=probs.device)
    threshold = min_p * best[:, :1]
    kept = torch.where((best >= threshold) & (rank < top_k), best, 0)
    # The candidates are enough if min-p or top-k cuts among them, or if top-p alone does.
    resolved = (top_k <= candidates) | (best[:, -1:] < threshold)
    total = torch.where(resolved, kept.sum(-1, keepdim=True), 1)
    only_top_p = (top_k == vocabulary) & (min_p == 0) & (kept.sum(-1, keepdim=True) >= top_p)
    kept = torch.where(kept.cumsum(-1) - kept < top_p * total, kept, 0)
    drawn = tokens.gather(-1, _invert(kept, numbers)[:, None]).squeeze(-1)
    open_rows = (~(resolved | only_top_p)).flatten().nonzero().flatten()
    if len(open_rows):
        rest = open_rows.tolist()
        drawn[open_rows] = _draw_cut(probs[open_rows], [params[i] for i in rest], numbers[open_rows], vocabulary)
    return drawn


def _invert(weights: Tensor, numbers: Tensor) -> Tensor:
    """[R, C] weights, [R] numbers in [0, 1) -> [R] the places where the cumulative share passes the number."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, (numbers * cumulative[:, -1])[:, None], right=True).squeeze(-1)


def _logprobs(logits: Tensor, chosen: list[int], sequences: Rows[Sequence]) -> list[TokenLogprob | None]:
    """Of the raw logits, for the rows that ask."""
    result: list[TokenLogprob | None] = [None] * len(chosen)
    for i, sequence in enumerate(sequences):
        count = sequence.params.logprobs
        if count is None:
            continue
        row = logits[i].log_softmax(-1)
        values, tokens = row.topk(min(count, row.numel()))
        top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
        result[i] = TokenLogprob(chosen[i], row[chosen[i]].item(), top)
    return result
