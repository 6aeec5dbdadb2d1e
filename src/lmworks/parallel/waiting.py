"""Who waits for whom, from what the ranks say of themselves. Pure: knows neither files, threads nor processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lmworks.parallel.heartbeats import Beat, members


@dataclass(frozen=True)
class Diagnosis:
    """Which ranks hold up the others."""

    culprits: tuple[int, ...]
    """Ranks that are waited for and wait for nobody; empty when all are in the same collective."""
    waiting: dict[int, tuple[int, ...]]
    """Whom each waiting rank waits for."""
    certain: bool
    """A rank is gone, or ended with an error of its own; else a slow one may still come."""
    gone: tuple[int, ...]
    """Culprits that said nothing for too long: killed, frozen, or on a host that is lost."""
    reason: str
    """All of it in words, the culprit first."""


def diagnose(beats: Mapping[int, Beat], silent: Mapping[int, float], patience: float) -> Diagnosis:
    """Tell who is waited for.

    A rank that has begun fewer collectives of a group than another member is waited for by it: collectives of one
    group are begun in one order. Among those that are waited for, the ones that wait for nobody are the culprits.
    A rank that is gone, or that ended with an error of its own, is one whatever it had begun.

    Args:
        beats: of all ranks.
        silent: seconds since each rank was last heard of.
        patience: seconds of silence after which a rank that did not say that it ended is gone.
    """
    gone = tuple(rank for rank, beat in beats.items() if beat.ended is None and silent[rank] > patience)
    failed = tuple(r for r, b in beats.items() if b.ended not in (None, "done") and not b.follows)
    waiting = _waiting(beats, {*gone, *failed})
    awaited = {rank for ranks in waiting.values() for rank in ranks}
    culprits = gone or failed or tuple(sorted(awaited - waiting.keys())) or tuple(sorted(awaited))
    return Diagnosis(culprits, waiting, bool(gone or failed), gone, _reason(beats, silent, culprits, waiting, gone))


def _waiting(beats: Mapping[int, Beat], lost: set[int]) -> dict[int, tuple[int, ...]]:
    """Whom each rank waits for; the lost wait for nobody."""
    found: dict[int, set[int]] = {}
    for key in sorted({key for beat in beats.values() for key in beat.collectives}):
        begun = {rank: (beats[rank].collectives.get(key, 0),) for rank in members(key) if rank in beats}
        _add(found, begun, lost)
    if not found:
        _add(found, {rank: (beat.step, beat.marks) for rank, beat in beats.items()}, lost)
    for rank in beats.keys() - lost - found.keys() if lost else ():
        found[rank] = set(lost)
    return {rank: tuple(sorted(found[rank])) for rank in sorted(found)}


def _add(found: dict[int, set[int]], progress: Mapping[int, tuple[int, ...]], lost: set[int]) -> None:
    furthest = max(progress.values())
    behind = {rank for rank, value in progress.items() if value < furthest}
    for rank in progress.keys() - behind - lost if behind else ():
        found.setdefault(rank, set()).update(behind)


def _reason(
    beats: Mapping[int, Beat],
    silent: Mapping[int, float],
    culprits: tuple[int, ...],
    waiting: Mapping[int, tuple[int, ...]],
    gone: tuple[int, ...],
) -> str:
    if not culprits:
        steps = sorted({beat.step for beat in beats.values()})
        return f"all {len(beats)} ranks are in the same collective (step {', '.join(map(str, steps))}): the network"
    told = [_culprit(beats[rank], silent[rank] if rank in gone else None) for rank in culprits]
    others = sorted(waiting.keys() - set(culprits))
    return "; ".join(told) + (f"; waiting for {_ranks(culprits)}: {_ranks(others)}" if others else "")


def _culprit(beat: Beat, silent: float | None) -> str:
    if beat.count < 0:
        return f"rank {beat.rank} never started"
    place = f"in {beat.phase!r} of step {beat.step}"
    if silent == math.inf:
        return f"{beat.where}, last {place}, is gone: its process was killed or crashed"
    if silent is not None:
        return f"{beat.where}, last {place}, says nothing for {silent:.1f} s: frozen, or its host is lost"
    if beat.ended is not None:
        return f"{beat.where} ended {place}: {beat.ended}"
    return f"{beat.where} is {place} for {beat.unmoved_seconds:.1f} s"


def _ranks(ranks: tuple[int, ...] | list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
