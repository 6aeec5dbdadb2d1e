"""The proof of parallel training holds, covers what it says, and sees a mean of means and a refusal that is missing."""

from dataclasses import replace

import pytest
import torch

from lmworks.objectives.causal_lm import causal_lm
from lmworks.objectives.loss import Loss
from lmworks.proofs import parallel
from lmworks.proofs.parallel_forms import COVER, FORMS, Gap
from lmworks.proofs.parallel_objectives import CASES
from lmworks.proofs.parallel_page import parallel_page

SAMPLE = [
    ("causal LM", "DDP"),
    ("causal LM", "TP+SP"),
    ("causal LM", "ring"),
    ("causal LM", "pipeline 1f1b, 8"),
    ("masked LM", "EP"),
    ("balanced experts", "pipeline 1f1b, 8"),
]
"""Of the pairs that `lmworks prove parallel` measures."""


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "pairs", lambda _: iter(SAMPLE))
        return parallel.prove(seed=3)


@pytest.mark.slow  # `make prove` runs the proof itself
def test_the_proof_holds(rows):
    assert len(rows) == len(CASES) + len(SAMPLE) + 2
    for row in rows:
        assert row.ok, row


@pytest.mark.slow  # `make prove` runs the proof itself
def test_the_short_proof_takes_every_form_and_every_objective_and_the_long_one_all_pairs(rows):
    short, long = (set(parallel.pairs(long)) for long in (False, True))
    assert set(SAMPLE) < short < long
    assert {form for _, form in short} == set(FORMS)
    assert {(objective, form) for objective in CASES for form in FORMS} < long
    assert {form for half in COVER for form in half} <= set(FORMS)


@pytest.mark.slow  # `make prove` runs the proof itself
def test_refusals_are_announced_by_their_words(rows):
    refused = {(row.objective, row.form) for row in rows if getattr(row, "gradient", 0.0) is None}
    assert ("balanced experts", "pipeline 1f1b, 8") in refused
    assert not any(objective == "causal LM" for objective, _ in refused)
    case = CASES["permutation LM"]
    assert parallel._row("p", "TP", case, FORMS["TP"], "'xl' attention mixes").ok
    assert not parallel._row("p", "TP", case, FORMS["TP"], "something else").ok
    assert not parallel._row("p", "TP", case, FORMS["TP"], Gap(0.0, 0.0)).ok
    assert not parallel._row("p", "DDP", case, FORMS["DDP"], "'xl' attention mixes").ok


@pytest.mark.slow  # `make prove` runs the proof itself
def test_the_page_has_every_form_and_every_reason(rows):
    page = parallel_page(rows, long=False)
    for form in FORMS:
        assert f"| {form} |" in page
    assert "balances the experts of all layers" in page


def test_a_mean_of_means_is_seen(monkeypatch):
    def mean_of_means(model, batch):
        loss = causal_lm(model, batch)
        return Loss(loss.loss_sum / loss.n_targets, torch.ones(()), loss.metrics)

    monkeypatch.setitem(CASES, "causal LM", replace(CASES["causal LM"], objective=mean_of_means))
    gap = parallel.accumulation_gap()
    assert min(gap.gradient, gap.loss) > 1e-3
