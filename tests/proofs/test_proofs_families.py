"""Every family is its reference, case by case; and the measures see planted mistakes."""

import re
from pathlib import Path

import pytest
import torch

from lmworks.models.families import FAMILIES
from lmworks.proofs import families
from lmworks.proofs.cases import all_cases
from lmworks.proofs.families import CHECKS, FamilyRow, family_rows, measure, row
from lmworks.proofs.families_page import families_page

CASES = {f"{case.family}-{case.name}": case for case in all_cases()}
PAGE = Path(__file__).parents[2] / "docs" / "families.md"
FIRST = {case.family: name for name, case in reversed(CASES.items())}
LLAMA = next(case for case in CASES.values() if case.family == "llama")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FIRST.values() else pytest.mark.slow) for name in CASES]
)
def test_case_holds(name):
    """Another seed than the command's default, so that both are seen; `lmworks prove families` measures every case."""
    for found in family_rows(CASES[name], seed=1):
        assert found.ok, found


def test_every_family_has_a_case_and_every_case_a_family():
    assert {case.family for case in CASES.values()} == set(FAMILIES)
    assert len(CASES) == len(all_cases()), "two cases of a family share a name"


def test_the_page_shows_every_family_with_bounds_that_hold():
    """Regenerate with `lmworks prove families --write docs/families.md`."""
    page = PAGE.read_text(encoding="utf-8")
    assert "**" not in page.split("|---|", 1)[1], "a bound was broken when the page was written"
    checks = {"logits": 1e-9, "gradients": 1e-9, "greedy": 0.0, "export": 0.0, "round trip": 0.0}
    shown = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    generated = families_page([row(f, c, v) for f in sorted(FAMILIES) for c, v in checks.items()])
    wanted = {line.split("`")[1]: line for line in generated.splitlines() if line.startswith("| `")}
    assert {f: line.split("|")[-3:] for f, line in shown.items()} == {
        f: line.split("|")[-3:] for f, line in wanted.items()
    }
    assert page.split("| family")[0] == generated.split("| family")[0]


def broken_rope(monkeypatch):
    from lmworks.models import position_codes

    original = position_codes.rope.inverse_frequencies
    monkeypatch.setattr(position_codes.rope, "inverse_frequencies", lambda size, theta: original(size, theta) * 1.001)


def broken_gradient(monkeypatch):
    original = families.our_outputs

    def detached(model, documents, types):
        model.embed_tokens.weight.requires_grad_(torch.is_grad_enabled() is False)
        return original(model, documents, types)

    monkeypatch.setattr(families, "our_outputs", detached)


def broken_save(monkeypatch):
    original = families.save_pretrained

    def save(model, folder):
        model.decoder.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-3
        original(model, folder)

    monkeypatch.setattr(families, "save_pretrained", save)


@pytest.mark.parametrize(
    ("plant", "checks"),
    [(broken_rope, {"logits"}), (broken_gradient, {"gradients"}), (broken_save, {"round trip", "export"})],
)
def test_the_measures_see_planted_mistakes(plant, checks, monkeypatch):
    plant(monkeypatch)
    failing = {check for check, value in measure(LLAMA).items() if not row("llama", check, value).ok}
    assert checks <= failing


def test_only_one_family_can_be_measured():
    rows = families.prove(0, "gpt2")
    assert {r.family for r in rows} == {"gpt2"}
    assert [r.check for r in rows] == list(CHECKS)
    assert all(isinstance(r, FamilyRow) and r.to_dict()["family"] == "gpt2" and r.ok for r in rows)
    assert re.search(r"\d+ cases, worst: ", rows[0].note)
