"""Which tokens may be drawn, and the draw: typical, min-p, top-k and top-p, in vLLM's order. Knows no sequence.

Every draw inverts the cumulative distribution at a given number, so it depends on nothing else in the batch. The cuts
look at the likeliest tokens first: sorting a whole vocabulary is slow, and seldom needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmworks.core.sampling import SamplingParams

CANDIDATES = 256
"""Top-k, top-p and min-p first look at this many likeliest tokens."""

WIDER = 16
"""Where those are too few, at so many times more."""


def cuts(params: SamplingParams) -> bool:
    """Whether some tokens may not be drawn."""
    return params.top_p < 1 or params.top_k > 0 or params.min_p > 0 or params.typical_p < 1


def draw(probs: Tensor, params: Sequence[SamplingParams], numbers: Tensor) -> Tensor:
    """One token of each row.

    Args:
        probs: [R, V] that sum to 1; changed where a row asks for typical sampling.
        params: R of them.
        numbers: [R] float64 in [0, 1).

    Returns:
        [R] tokens.
    """
    cut = [i for i, p in enumerate(params) if cuts(p)]
    if not cut:
        return invert(probs, numbers)
    if typical := [i for i in cut if params[i].typical_p < 1]:
        mass = probs.new_tensor([params[i].typical_p for i in typical])
        probs[typical] = keep_typical(probs[typical], mass)
    if len(cut) == len(params):
        return _draw_cut(probs, params, numbers, CANDIDATES)
    tokens = invert(probs, numbers)
    tokens[cut] = _draw_cut(probs[cut], [params[i] for i in cut], numbers[cut], CANDIDATES)
    return tokens


def keep_typical(probs: Tensor, mass: Tensor) -> Tensor:
    """Locally typical sampling (arXiv:2202.00666): the tokens whose surprise is nearest to what is expected.

    Args:
        probs: [R, V] that sum to 1.
        mass: [R] share to keep at least.

    Returns:
        [R, V] that sum to 1.
    """
    surprise = -probs.log()
    expected = torch.where(probs > 0, probs * surprise, 0).sum(-1, keepdim=True)
    distance, order = (surprise - expected).abs().sort(dim=-1)
    before = probs.gather(-1, order).cumsum(-1) - probs.gather(-1, order)
    last = ((before < mass[:, None]).sum(-1, keepdim=True) - 1).clamp_(min=0)
    kept = torch.where((surprise - expected).abs() <= distance.gather(-1, last), probs, 0)
    return kept / kept.sum(-1, keepdim=True)


def invert(weights: Tensor, numbers: Tensor) -> Tensor:
    """[R, C] weights, [R] numbers in [0, 1) -> [R] the places where the cumulative share passes the number."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, (numbers * cumulative[:, -1])[:, None], right=True).squeeze(-1)


def _draw_cut(probs: Tensor, params: Sequence[SamplingParams], numbers: Tensor, candidates: int) -> Tensor:
    """Draw after min-p, top-k and top-p, from the `candidates` likeliest, or from more where those are too few.

    Tokens as likely as the last of the top k are kept with it, as in vLLM.
    """
    vocabulary = probs.shape[-1]
    candidates = min(candidates, vocabulary)
    best, tokens = probs.topk(candidates)
    top_k = torch.tensor([p.top_k if p.top_k > 0 else vocabulary for p in params], device=probs.device)[:, None]
    top_p = probs.new_tensor([p.top_p for p in params])[:, None]
    min_p = probs.new_tensor([p.min_p for p in params])[:, None]
    # Nothing below this is kept. A row with a larger k than there are candidates knows no bound yet.
    kth = torch.where(top_k <= candidates, best.gather(-1, top_k.clamp(max=candidates) - 1), 0)
    threshold = torch.maximum(min_p * best[:, :1], kth)
    kept = torch.where(best >= threshold, best, 0)
    # The candidates are enough if min-p or top-k cuts among them, or if top-p alone does.
    resolved = (best[:, -1:] < threshold) | (candidates == vocabulary)
    total = torch.where(resolved, kept.sum(-1, keepdim=True), 1)
    only_top_p = (top_k >= vocabulary) & (min_p == 0) & (kept.sum(-1, keepdim=True) >= top_p)
    kept = torch.where(kept.cumsum(-1) - kept < top_p * total, kept, 0)
    drawn = tokens.gather(-1, invert(kept, numbers)[:, None]).squeeze(-1)
    unresolved = (~(resolved | only_top_p)).flatten().nonzero().flatten()
    if len(unresolved):
        rest = [params[i] for i in unresolved.tolist()]
        drawn[unresolved] = _draw_cut(probs[unresolved], rest, numbers[unresolved], WIDER * candidates)
    return drawn
