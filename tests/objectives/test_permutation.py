"""Permutation language modeling: orders, the loss by its formula, and that it learns. Two streams: test_xlnet.py."""

import numpy as np
import pytest
import torch
from objective_case import assert_same_gradients, documents
from torch.nn import functional as F

from lmworks.models.build import build_model
from lmworks.models.families import family_named
from lmworks.nn.permuted_context import PermutedContext
from lmworks.objectives.draws import Draws
from lmworks.objectives.permutation import draw_order, permutation_lm, permute

SIZES = {"vocab_size": 61, "d_model": 24, "n_layer": 2, "n_head": 3, "d_inner": 40, "dropout": 0.0}


def xlnet():
    return build_model(family_named("xlnet").config_from_hf({**SIZES, "initializer_range": 0.1}), seed=0)


@pytest.mark.parametrize(
    ("length", "predicted", "ranks"),
    [(1, 0.25, [0]), (12, 0.25, [0] * 9 + [1, 2, 3]), (2, 0.25, [0, 1]), (5, 1.0, [0, 1, 2, 3, 4]),
     (7, 0.3, [0] * 4 + [1, 2, 3])],
)  # fmt: skip
def test_an_order_predicts_a_share_rounded_up_and_gives_one_token_at_least(length, predicted, ranks):
    assert sorted(draw_order(length, Draws(0, 0), predicted)) == ranks


def test_orders_are_even():
    ranks = np.stack([draw_order(12, Draws(0, row), 0.25) for row in range(2000)])
    for rank in (1, 2, 3):
        assert abs((ranks == rank).mean(0) - 1 / 12).max() < 0.031  # five deviations


def test_the_loss_is_that_of_the_predicted_tokens():
    model = xlnet()
    batch = permute(documents(9, 1, 14), Draws(0, 0), 0.3)
    assert batch.num_tokens == 23  # a single token has nothing to be predicted from
    loss = permutation_lm(model, batch, z_loss=0.01)
    targets = batch.ranks.nonzero().squeeze(1)
    context = PermutedContext(batch.cu_seqlens, ranks=batch.ranks, targets=targets)
    logits = model.logits(model(batch.input_ids, batch.positions, context))
    wanted = F.cross_entropy(logits, batch.input_ids[targets], reduction="sum")
    wanted = wanted + 0.01 * logits.logsumexp(-1).square().sum()
    torch.testing.assert_close(loss.loss_sum, wanted, rtol=1e-5, atol=1e-5)
    assert loss.n_targets == 3 + 5
    assert_same_gradients(model, loss.loss_sum, wanted)


def test_the_objective_learns():
    model = xlnet()
    document = np.array([1, *range(10, 22)])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for step in range(90):
        loss = permutation_lm(model, permute([document] * 4, Draws(0, step), 0.3))
        mean = loss.loss_sum / loss.n_targets
        losses.append(mean.item())
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
    assert losses[0] > 3.5
    assert sum(losses[-5:]) / 5 < 0.5
