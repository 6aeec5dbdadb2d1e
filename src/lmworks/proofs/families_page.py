"""The table of families as a page: measured errors, one row per family. Knows no measurement."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from lmworks.core.code_version import code_version
from lmworks.models.families import FAMILIES, family_named
from lmworks.proofs.families import CHECKS, FamilyRow, row

HEADINGS = {
    "logits": "Δ logit",
    "gradients": "Δ gradient",
    "greedy": "greedy",
    "export": "export Δ",
    "round trip": "round trip",
}
INTRODUCTION = """# Families

Written by `lmworks prove families --write docs/families.md`; every number is the worst of the family's cases against
`transformers` on tiny random models of awkward sizes, in float32.

- **Δ logit**: largest absolute difference of an output, packed documents here, single ones there. Bound {logits:g}.
- **Δ gradient**: largest relative error of a parameter's gradient. Bound {gradients:g}.
- **greedy**: continuations by the engine's paged cache that are not token for token the reference's. Bound 0.
- **export Δ**: our folder, read by `transformers`, against the original. Bound {export:g}.
- **round trip**: tensors that differ in a byte after load and save. Bound 0.

A dash stands where a check makes no sense: an encoder generates nothing.
How to add a family: [a worked example](guides/adding-a-family.md).
"""


def families_page(rows: Sequence[FamilyRow]) -> str:
    """Markdown with one line per family, in the order of the rows."""
    bounds = {check: row("", check, 0.0).bound for check in CHECKS}
    lines = [
        INTRODUCTION.format(**bounds),
        "| family | " + " | ".join(HEADINGS[c] for c in CHECKS) + " | published sizes | classes |",
        "|---|" + "---|" * len(CHECKS) + "---|---|",
    ]
    for family in dict.fromkeys(r.family for r in rows):
        described = family_named(family)
        values = {r.check: cell(r) for r in rows if r.family == family}
        checks = " | ".join(values.get(c, "–") for c in CHECKS)
        presets, classes = ", ".join(described.hf_presets), ", ".join(described.architectures)
        lines.append(f"| `{family}` | {checks} | {presets} | {classes} |")
    missing = sorted(set(FAMILIES) - {r.family for r in rows})
    assert not missing, f"families without a case: {missing}"
    lines += [
        "",
        f"Measured with {code_version(__name__)} on {platform.machine()}, Python {platform.python_version()}.",
        "",
    ]
    return "\n".join(lines)


def cell(row: FamilyRow) -> str:
    """A value as short as it is meant; what breaks its bound stands out."""
    shown = f"{row.value:.0f}" if row.bound == 0 or row.value == 0 else f"{row.value:.0e}"
    return shown if row.ok else f"**{shown}**"
