"""Which tokens may be drawn, and the draw: typical, min-p, top-k and top-p, in vLLM's order. Knows no sequence.

Every draw inverts the cumulative distribution at a given number, so it depends on nothing else in the batch. No
vocabulary is sorted, but for typical sampling: the cuts look at the likeliest tokens first, and where those are too
few, bisection finds the least probability that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lmworks.core.sampling import SamplingParams

CANDIDATES = 256
"""Top-k, top-p and min-p first look at this many likeliest tokens."""

NEAR = 2**19
"""Bits of float32 values that differ by less than this are within six percent of each other."""

BLOCK = 256
"""Weights are summed by blocks of so many, and only the block with the drawn token is looked at more closely."""


def cuts(params: SamplingParams) -> bool:
    """Whether some tokens may not be drawn."""
    return params.top_p < 1 or params.top_k > 0 or params.min_p > 0 or params.typical_p < 1


def draw(probs: Tensor, params: Sequence[SamplingParams], numbers: Tensor) -> Tensor:
    """One token of each row.

    Args:
        probs: [R, V] float32 that sum to 1; changed where a row asks for typical sampling.
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
        probs[typical] = keep_typical(probs[typical], mass[:, None])
    if len(cut) == len(params):
        return _draw_cut(probs, params, numbers)
    tokens = invert(probs, numbers)
    tokens[cut] = _draw_cut(probs[cut], [params[i] for i in cut], numbers[cut])
    return tokens


def keep_typical(probs: Tensor, mass: Tensor) -> Tensor:
    """Locally typical sampling (arXiv:2202.00666): the tokens whose surprise is nearest to what is expected.

    Args:
        probs: [R, V] that sum to 1.
        mass: [R, 1] share to keep at least.

    Returns:
        [R, V] that sum to 1.
    """
    surprise = -probs.log()
    expected = torch.where(probs > 0, probs * surprise, 0).sum(-1, keepdim=True)
    distance = (surprise - expected).abs()
    nearest, order = distance.sort(dim=-1)
    weights = probs.gather(-1, order)
    last = ((weights.cumsum(-1) - weights < mass).sum(-1, keepdim=True) - 1).clamp(min=0)
    kept = torch.where(distance <= nearest.gather(-1, last), probs, 0)
    return kept / kept.sum(-1, keepdim=True)


def invert(weights: Tensor, numbers: Tensor) -> Tensor:
    """[R, C] weights, [R] numbers in [0, 1) -> [R] the places where the cumulative share passes the number."""
    size = weights.shape[-1]
    whole = size - size % BLOCK
    sums = weights[:, :whole].reshape(len(weights), -1, BLOCK).sum(-1)
    if whole < size:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=-1)
    block, share = _pass(sums, numbers[:, None])
    places = block * BLOCK + torch.arange(min(BLOCK, size), device=weights.device)
    inside = torch.where(places < size, weights.gather(-1, places.clamp(max=size - 1)), 0)
    return (block * BLOCK + _pass(inside, share)[0]).squeeze(-1)


def _pass(weights: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Where the cumulative share passes a number, and which share of that one weight lies before the number.

    Args:
        weights: [R, C].
        shares: [R, 1] float64 in [0, 1).

    Returns:
        [R, 1] places of positive weights, [R, 1] float64 in [0, 1).
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # The product may be rounded up to the total, which no place passes; nor does any in a row that is not finite.
    target = torch.minimum(shares * total, torch.nextafter(total, torch.zeros_like(total)))
    place = torch.searchsorted(cumulative, target, right=True).clamp(max=weights.shape[-1] - 1)
    weight = weights.gather(-1, place).double()
    before = cumulative.gather(-1, place) - weight
    return place, ((target - before) / weight).clamp(0, 1 - 2**-53)


def _draw_cut(probs: Tensor, params: Sequence[SamplingParams], numbers: Tensor) -> Tensor:
    """Draw after min-p, top-k and top-p, from the likeliest tokens where those are enough.

    Tokens as likely as the last of the top k are kept with it, as in vLLM.
    """
    vocabulary = probs.shape[-1]
    candidates = min(CANDIDATES, vocabulary)
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
    wide = (~(resolved | only_top_p)).flatten().nonzero().flatten()
    for i in wide.tolist():
        drawn[i] = invert(_keep_many(probs[i], params[i], threshold[i].item())[None], numbers[i : i + 1])[0]
    return drawn


def _keep_many(probs: Tensor, params: SamplingParams, threshold: float) -> Tensor:
    """What top-k and top-p leave of one row, without sorting it.

    Args:
        probs: [V].
        params: of the row.
        threshold: the least probability that min-p keeps.

    Returns:
        [V] weights.
    """
    if 0 < params.top_k < len(probs):
        threshold = max(threshold, probs.topk(params.top_k, sorted=False).values.amin().item())
    kept = _from(probs, threshold)
    if params.top_p == 1:
        return kept
    total = kept.sum().item()
    # The mass above `low` reaches what is to be kept, the mass above `high` does not. Halving the distance of their
    # bits, which are in the order of the values, brings them together until few tokens lie between.
    low, high = _bits(0.5 * (1 - params.top_p) * total / len(probs)), _bits(kept.amax().item())
    above_high = 0.0
    while high - low > NEAR:
        middle = (low + high) // 2
        above = functional.threshold(kept, _value(middle), 0.0).sum().item()
        if above >= params.top_p * total:
            low = middle
        else:
            high, above_high = middle, above
    near = kept[(kept > _value(low)) & (kept <= _value(high))].sort(descending=True).values
    before = above_high + near.cumsum(0) - near
    return _from(kept, near[before < params.top_p * total][-1].item())


def _from(probs: Tensor, least: float) -> Tensor:
    """The probabilities of at least so much, the others 0; much faster than a comparison of all."""
    return functional.threshold(probs, _value(_bits(least) - 1), 0.0) if least > 0 else probs


def _bits(value: float) -> int:
    """The bits of a positive float32."""
    return int(np.float32(value).view(np.int32))


def _value(bits: int) -> float:
    """The float32 of such bits."""
    return float(np.int32(bits).view(np.float32))
