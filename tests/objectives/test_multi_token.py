"""Multi-token prediction: the loss against its formula document by document, and who can have it."""

import pytest
import torch
from objective_case import assert_same_gradients, documents, model
from torch.nn import functional as F

from lmworks.core.errors import ConfigError
from lmworks.models.multi_token import MultiTokenTransformer
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import next_token_document, pack
from lmworks.objectives.causal_lm import causal_lm
from lmworks.objectives.multi_token import multi_token


def batch_of(docs):
    weighted = [[1.0] * (len(d) - 1) + [0.5] for d in docs]
    return pack([next_token_document(d.tolist(), w) for d, w in zip(docs, weighted, strict=True)])


def test_the_loss_is_the_formula_of_the_paper():
    ahead = MultiTokenTransformer(model("decoder"), 2, seed=1)
    docs = documents(9, 3, 2, 12)
    loss = multi_token(ahead, batch_of(docs), mtp_loss_weight=0.4)
    main, depths = torch.zeros(()), [torch.zeros(()), torch.zeros(())]
    for ids in map(torch.as_tensor, docs):
        weights = torch.ones(len(ids))
        weights[-1] = 0.5
        t = len(ids)
        context = PackedContext(torch.tensor([0, t], dtype=torch.int32))
        hidden = ahead.model(ids, torch.arange(t), context)
        # h_i predicts t_{i+1}; the state of depth k at i predicts t_{i+1+k} from h^{k-1}_i and t_{i+k}.
        main = main + F.cross_entropy(ahead.model.logits(hidden)[:-1], ids[1:], reduction="none") @ weights[1:]
        for k in (1, 2):
            if t - 1 - k < 1:
                break
            part = ahead.depths[k - 1]
            n = t - k
            both = torch.cat([part.hidden_norm(hidden[:n]), part.embedding_norm(ahead.model.embed(ids[k:]))], -1)
            hidden = part.stack(
                part.projection(both), torch.arange(n), PackedContext(torch.tensor([0, n], dtype=torch.int32))
            )
            losses = F.cross_entropy(ahead.model.logits(hidden)[:-1], ids[k + 1 :], reduction="none")
            depths[k - 1] = depths[k - 1] + losses @ weights[k + 1 :]
    torch.testing.assert_close(loss.metrics["mtp_loss_1"], depths[0].detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.metrics["mtp_loss_2"], depths[1].detach(), rtol=1e-5, atol=1e-5)
    wanted = main + 0.2 * (depths[0] + depths[1])
    torch.testing.assert_close(loss.loss_sum, wanted, rtol=1e-5, atol=1e-5)
    assert loss.n_targets == 26 - 4 - 4 * 0.5
    assert_same_gradients(ahead, loss.loss_sum, wanted)


def test_the_model_itself_is_what_it_was():
    decoder = model("decoder")
    batch = batch_of(documents(9, 3))
    with torch.no_grad():
        before = causal_lm(decoder, batch).loss_sum
        ahead = MultiTokenTransformer(decoder, 1, seed=0)
        assert causal_lm(ahead, batch).loss_sum == before
        assert multi_token(ahead, batch, mtp_loss_weight=0.0).loss_sum == before


def test_depths_begin_differently_and_reproducibly():
    first, again = (MultiTokenTransformer(model("decoder"), 2, seed=3) for _ in range(2))
    for mine, other in zip(first.depths.parameters(), again.depths.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert not torch.equal(first.depths[0].projection.weight, first.depths[1].projection.weight)
    assert len(first.depths[0].stack.layers) == 1


def test_it_learns_a_cycle_two_ahead():
    ahead = MultiTokenTransformer(model("decoder", initializer_range=0.1), 1, seed=0)
    batch = batch_of([torch.arange(24).remainder(6) + 10] * 2)
    optimizer = torch.optim.Adam(ahead.parameters(), 1e-2)
    for _ in range(60):
        loss = multi_token(ahead, batch)
        optimizer.zero_grad()
        (loss.loss_sum / loss.n_targets).backward()
        optimizer.step()
    assert loss.metrics["mtp_loss_1"] / loss.n_targets < 0.2


@pytest.mark.parametrize("kind", ["encoder", "both"])
def test_other_models_are_refused(kind):
    with pytest.raises(ConfigError, match="takes a causal decoder alone"):
        MultiTokenTransformer(model(kind), 1)
    with pytest.raises(ConfigError, match="num_nextn_predict_layers 0"):
        MultiTokenTransformer(model("decoder"), 0)
