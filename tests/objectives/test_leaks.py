"""Nothing reaches a loss that it must not see: no token of another document, and none that is still to be predicted.

Every token of a document has an id of its own, so gradients of the embedding's rows tell which tokens were seen.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from objective_case import model
from test_splits import CASES

from lmworks.models.build import build_model
from lmworks.models.families import family_named
from lmworks.models.multi_token import MultiTokenTransformer
from lmworks.objectives.causal_lm import causal_lm
from lmworks.objectives.draws import Draws
from lmworks.objectives.fill_in_the_middle import fill_in_the_middle
from lmworks.objectives.multi_token import multi_token
from lmworks.objectives.permutation import permutation_lm, permute
from lmworks.objectives.source_target import for_decoder, for_encoder_decoder, prefix_lm, prefix_pairs, seq2seq

IDS = np.random.default_rng(4).permutation(np.arange(5, 50))
DOCUMENTS = [IDS[:17], IDS[17:26], IDS[26:]]


def xlnet():
    sizes = {"vocab_size": 61, "d_model": 12, "n_layer": 2, "n_head": 3, "d_inner": 16, "initializer_range": 0.3}
    config = family_named("xlnet").config_from_hf({**sizes, "tie_word_embeddings": False})
    return build_model(config, seed=0).eval()


def seen(built, loss):
    """Ids of the tokens whose embedding the loss depends on."""
    tables = [m for m in built.modules() if isinstance(m, torch.nn.Embedding) and m.num_embeddings == 61]
    built.zero_grad()
    loss.backward()
    return {int(i) for table in tables if table.weight.grad is not None for i in table.weight.grad.any(1).nonzero()}


def altered(batch, document):
    """The batch with other tokens in one document, and in its source."""
    changes = {}
    for tokens, bounds in (("input_ids", "cu_seqlens"), ("source_ids", "source_cu_seqlens")):
        if hasattr(batch, tokens):
            ids, own = getattr(batch, tokens).clone(), slice(*getattr(batch, bounds)[document : document + 2].tolist())
            ids[own] = (ids[own] + 7) % 61
            changes[tokens] = ids
    return replace(batch, **changes)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("contrastive", "pairs")])
@pytest.mark.parametrize("learnt", [0, 1, 2])
def test_a_loss_depends_on_its_own_document_alone(name: str, learnt: int) -> None:
    case = CASES[name]
    built = case.build()
    batch = case.arrangement(DOCUMENTS, Draws(2, learnt))
    own = slice(*batch.cu_seqlens[learnt : learnt + 2].tolist())
    weights = torch.zeros_like(batch.loss_weights)
    weights[own] = batch.loss_weights[own]
    batch = replace(batch, loss_weights=weights)
    losses = [case.objective(built, altered(batch, d)).loss_sum for d in range(3)]
    same = case.objective(built, batch).loss_sum
    for document, loss in enumerate(losses):
        assert torch.isclose(loss, same, rtol=1e-5) == (document != learnt), document


ORDERED = {
    "causal": (lambda: model("decoder"), causal_lm, CASES["causal"].arrangement),
    "multi-token": (lambda: MultiTokenTransformer(model("decoder"), 3, seed=0), multi_token,
                    partial(fill_in_the_middle, config=CASES["causal"].arrangement.keywords["config"])),
    "prefix": (lambda: model("decoder"), prefix_lm, for_decoder(prefix_pairs)),
    "seq2seq": (lambda: model("both"), seq2seq, for_encoder_decoder(prefix_pairs, 0)),
    "permutation": (xlnet, permutation_lm, permute),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERED)
def test_a_token_is_predicted_from_what_stands_before_it(name: str) -> None:
    build, objective, arrangement = ORDERED[name]
    built = build()
    batch = arrangement(DOCUMENTS, Draws(1, 3))
    targets = batch.loss_weights.nonzero().squeeze(1).tolist()
    for place in targets[::3]:
        weights = torch.zeros_like(batch.loss_weights)
        weights[place] = 1
        found = seen(built, objective(built, replace(batch, loss_weights=weights)).loss_sum)
        document = int(torch.searchsorted(batch.cu_seqlens, place, right=True)) - 1
        own = slice(*batch.cu_seqlens[document : document + 2].tolist())
        ids, here = batch.input_ids[own].tolist(), place - own.start
        if name == "permutation":
            ranks = batch.ranks[own].tolist()
            before = {i for i, rank in zip(ids, ranks, strict=True) if rank < ranks[here]}
        else:
            before = set(ids[: here + 1])
        if name == "seq2seq":
            before |= set(batch.source_ids[slice(*batch.source_cu_seqlens[document : document + 2].tolist())].tolist())
        assert found == before, (place, found ^ before)
