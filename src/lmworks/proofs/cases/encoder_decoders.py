"""Models of this group."""

from __future__ import annotations

from lmworks.proofs.cases.case import Case

CASES: tuple[Case, ...] = ()
