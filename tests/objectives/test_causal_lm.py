"""The next-token objective: its value, and that documents in one batch do not see each other."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import lmworks.objectives.causal_lm as causal_lm_module
from lmworks.kernels.scores import Scores
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import next_token_document, pack
from lmworks.objectives.causal_lm import causal_lm
from lmworks.proofs.tiny import tiny_model


def documents() -> list[list[int]]:
    g = torch.Generator().manual_seed(3)
    return [torch.randint(0, 131, (n,), generator=g).tolist() for n in (5, 33, 2, 17)]


def packed_and_alone(family: str, context: type) -> tuple[Tensor, Tensor]:
    """Logits of all documents in one batch, and of each in a batch of its own."""
    model = tiny_model(family)

    def logits(token_ids: list[list[int]]) -> Tensor:
        batch = pack([next_token_document(ids) for ids in token_ids])
        with torch.no_grad():
            return model.logits(model(batch.input_ids, batch.positions, context(batch.cu_seqlens)))

    return logits(documents()), torch.cat([logits([ids]) for ids in documents()])


class LeakyContext(PackedContext):
    """Attends over the whole row as if it were one document: the mistake that the test must catch."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        whole = torch.tensor([0, query.shape[0]], dtype=torch.int32)
        return PackedContext(whole).attend(layer, query, key, value, scores)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packed_logits_are_those_of_each_document_alone(family: str):
    packed, alone = packed_and_alone(family, PackedContext)
    assert (packed - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_context_that_leaks_across_documents_is_caught(family: str):
    packed, alone = packed_and_alone(family, LeakyContext)
    assert (packed - alone).abs().max() > 1e-2


def test_the_loss_is_the_weighted_sum_of_negative_log_probabilities():
    model = tiny_model("llama")
    weights = [[1.0, 1.0, 0.0, 0.5, 2.0], None, None, None]
    batch = pack([next_token_document(ids, w) for ids, w in zip(documents(), weights, strict=True)])
    loss = causal_lm(model, batch)
    logits = model.logits(model(batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens)))
    expected = (F.cross_entropy(logits, batch.targets, reduction="none") * batch.loss_weights).sum()
    torch.testing.assert_close(loss.loss_sum, expected, rtol=1e-5, atol=1e-4)
    assert loss.n_targets.item() == 3.5 + 32 + 1 + 16


def test_z_loss_and_label_smoothing_reach_the_head():
    model, batch = tiny_model("llama"), pack([next_token_document(ids) for ids in documents()])
    loss = causal_lm(model, batch, z_loss=0.01, label_smoothing=0.1).loss_sum
    logits = model.logits(model(batch.input_ids, batch.positions, PackedContext(batch.cu_seqlens)))
    expected = F.cross_entropy(logits, batch.targets, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(loss, expected + 0.01 * logits.logsumexp(-1).square().sum(), rtol=1e-5, atol=1e-4)


def test_the_objective_asks_for_isolation(monkeypatch: pytest.MonkeyPatch):
    model, batch = tiny_model("llama"), pack([next_token_document(ids) for ids in documents()])
    isolated = causal_lm(model, batch).loss_sum
    monkeypatch.setattr(causal_lm_module, "PackedContext", LeakyContext)
    assert abs(causal_lm(model, batch).loss_sum - isolated) > 1e-2
