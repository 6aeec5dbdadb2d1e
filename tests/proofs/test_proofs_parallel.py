"""The proof of parallel training holds, and sees a mean of means."""

import torch

from lmworks.objectives.causal_lm import causal_lm
from lmworks.objectives.loss import Loss
from lmworks.proofs import parallel


def test_the_proof_holds():
    rows = parallel.prove(seed=3)
    assert len(rows) == 2 * (len(parallel.FORMS) + 1) + 2
    for row in rows:
        assert row.ok, row


def test_a_mean_of_means_is_seen(monkeypatch):
    def mean_of_means(model, batch):
        loss = causal_lm(model, batch)
        return Loss(loss.loss_sum / loss.n_targets, torch.ones(()), loss.metrics)

    monkeypatch.setattr(parallel, "causal_lm", mean_of_means)
    gap = parallel.accumulation_gap()
    assert min(gap.gradient, gap.loss) > 1e-3
