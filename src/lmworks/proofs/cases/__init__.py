"""Tiny models of every family, as `transformers` configures them: what `lmworks prove families` compares."""

from __future__ import annotations

from importlib import import_module

from lmworks.proofs.cases.case import Case

GROUPS = ("dense", "older", "experts", "encoders", "encoder_decoders", "vision")
"""Modules of this package, each with a tuple `CASES`."""


def all_cases() -> tuple[Case, ...]:
    """Every case, in the order of the groups."""
    return tuple(case for group in GROUPS for case in import_module(f"{__name__}.{group}").CASES)
