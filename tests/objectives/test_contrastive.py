"""InfoNCE and SigLIP against their formulas and sentence-transformers, and groups that no split changes."""

from functools import partial

import pytest
import torch
from objective_case import assert_same_gradients, documents, model
from torch.nn import functional as F

from lmworks.core.errors import DataError
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import pack
from lmworks.objectives.contrastive import contrastive, info_nce, siglip

EMBEDDING = {"kind": "embedding", "pooling": "mean"}


def vectors(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, 8, generator=g, dtype=torch.float64), dim=-1).float().requires_grad_()


def batch_of(*lengths):
    return pack([(d.tolist(), d.tolist(), [0.0] * len(d)) for d in documents(*lengths)])


@pytest.mark.parametrize("symmetric", [True, False])
def test_info_nce_is_its_formula(symmetric):
    left, right = vectors(5), vectors(7, seed=1)
    loss = info_nce(left, right, temperature=0.2, symmetric=symmetric)
    scores = (left @ right.T / 0.2).exp()
    own = torch.arange(5)
    forward = -(scores[own, own] / scores.sum(1)).log().sum()
    backward = -(scores[own, own] / scores[:, :5].sum(0)).log().sum()
    wanted = (forward + backward) / 2 if symmetric else forward
    torch.testing.assert_close(loss, wanted)
    for mine, other in zip(
        torch.autograd.grad(loss, (left, right)), torch.autograd.grad(wanted, (left, right)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # the import alone takes seconds
def test_info_nce_is_that_of_sentence_transformers():
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    theirs = MultipleNegativesRankingLoss(None, scale=20.0)
    left, right, hard = vectors(4), vectors(4, seed=1), vectors(4, seed=2)
    wanted = theirs.compute_loss_from_embeddings([left, right, hard], None)
    ours = info_nce(left, torch.cat([right, hard]), temperature=0.05, symmetric=False)
    torch.testing.assert_close(ours / 4, wanted)


def test_siglip_is_its_formula():
    left, right = vectors(4), vectors(4, seed=1)
    scale, bias = torch.tensor(3.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    loss = siglip(left, right, scale=scale, bias=bias)
    wanted = torch.zeros(())
    for i in range(4):
        for j in range(4):
            z = 1 if i == j else -1
            wanted = wanted - (1 / (1 + (z * (-scale * (left[i] @ right[j]) - bias)).exp())).log()
    torch.testing.assert_close(loss, wanted)
    inputs = (left, right, scale, bias)
    for mine, other in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_neighbors_are_pairs():
    encoder = model("encoder", EMBEDDING)
    batch = batch_of(3, 9, 5, 2, 7, 7)
    loss = contrastive(encoder, batch, loss=partial(info_nce, temperature=0.3))
    hidden = encoder(batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens))
    embedded = [F.normalize(h.mean(0), dim=0) for h in hidden.split(batch.cu_seqlens.diff().tolist())]
    left, right = torch.stack(embedded[0::2]), torch.stack(embedded[1::2])
    wanted = info_nce(left, right, temperature=0.3)
    torch.testing.assert_close(loss.loss_sum, wanted, rtol=1e-5, atol=1e-5)
    assert loss.n_targets == 3
    assert loss.metrics["accuracy"] == sum(int((left[i] @ right.T).argmax() == i) for i in range(3))
    assert_same_gradients(encoder, loss.loss_sum, wanted)


@pytest.mark.parametrize("pair_loss", [info_nce, siglip])
def test_groups_are_batches_of_their_own(pair_loss):
    encoder = model("encoder", EMBEDDING)
    lengths = (3, 9, 5, 2, 7, 7, 4, 6)
    whole = contrastive(encoder, batch_of(*lengths), loss=pair_loss, group_pairs=2)
    docs = documents(*lengths)
    halves = [
        contrastive(encoder, pack([(d.tolist(), d.tolist(), [0.0] * len(d)) for d in docs[i : i + 4]]), loss=pair_loss)
        for i in (0, 4)
    ]
    torch.testing.assert_close(whole.loss_sum, halves[0].loss_sum + halves[1].loss_sum, rtol=1e-5, atol=1e-5)
    assert whole.n_targets == 4
    assert abs(contrastive(encoder, batch_of(*lengths), loss=pair_loss).loss_sum - whole.loss_sum) > 0.1


@pytest.mark.parametrize(("lengths", "group"), [((3,), None), ((3, 4, 5), None), ((3, 4, 5, 6), 4)])
def test_documents_that_are_no_pairs_are_refused(lengths, group):
    with pytest.raises(DataError, match="does not hold whole groups"):
        contrastive(model("encoder", EMBEDDING), batch_of(*lengths), group_pairs=group)
