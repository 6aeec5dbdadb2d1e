"""Shares of a mixture as whole millionths: given exactly, or computed from amounts under limits.

In whole numbers, shares sum to one on every machine. Knows neither files nor rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import isfinite

DECIMALS = 6
"""Of a share. With so many, the pattern of sources repeats after at most 10^6 rows, so any row is found at once."""
WHOLE = 10**DECIMALS


def exact_shares(weights: Mapping[str, float]) -> tuple[int, ...]:
    """Weights as numerators over `WHOLE`.

    Raises:
        ValueError: one is negative or no number, has too many decimals, or they do not sum to 1.
    """
    fractions = []
    for name, weight in weights.items():
        if not isfinite(weight) or weight < 0:
            raise ValueError(f"the weight {weight} of {name!r} is not a share: give 0 or more")
        fraction = Fraction(repr(float(weight))) * WHOLE
        if fraction.denominator != 1:
            raise ValueError(f"the weight {weight} of {name!r} has more than {DECIMALS} decimals; round it")
        fractions.append(fraction.numerator)
    if sum(fractions) != WHOLE:
        total = Fraction(sum(fractions), WHOLE)
        raise ValueError(f"the weights {dict(weights)} sum to {float(total):g} and not to 1; scale them")
    return tuple(fractions)


def rounded_shares(amounts: Mapping[str, float], whole: int = WHOLE) -> tuple[int, ...]:
    """Amounts as whole numbers that sum to `whole`: the largest remainders are rounded up.

    No amount above 0 becomes 0, or a tiny source would be left out in silence; the largest shares give way.
    """
    total = sum(amounts.values())
    exact = [amount / total * whole for amount in amounts.values()]
    shares = [max(int(value), value > 0) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    missing = whole - sum(shares)
    for index in by_remainder[: max(missing, 0)]:
        shares[index] += 1
    for _ in range(-missing):
        shares[shares.index(max(shares))] -= 1
    return tuple(shares)


def limited_shares(amounts: Mapping[str, float], limits: Mapping[str, int]) -> tuple[int, ...]:
    """Shares in proportion to amounts, but none above its limit; the others take what a limited source cannot give.

    As UniMax fills languages up to a number of epochs (arXiv:2304.09151).

    Args:
        amounts: of every source.
        limits: most millionths, of the sources that have a limit.

    Raises:
        ValueError: the limits leave a part of the whole to nobody.
    """
    free, fixed = dict(amounts), dict[str, int]()
    while over := [n for n, a in free.items() if n in limits and a / sum(free.values()) * _left(fixed) > limits[n]]:
        fixed |= {name: limits[name] for name in over}
        free = {name: amount for name, amount in free.items() if name not in fixed}
    if not free and _left(fixed):
        raise ValueError(f"with max_epochs the sources fill only {1 - _left(fixed) / WHOLE:.2%} of the run")
    shares = fixed | dict(zip(free, rounded_shares(free, _left(fixed)) if free else (), strict=True))
    return tuple(shares[name] for name in amounts)


def _left(fixed: Mapping[str, int]) -> int:
    return WHOLE - sum(fixed.values())
