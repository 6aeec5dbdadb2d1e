"""The contract of all objectives: any split of rows into micro-batches gives the same sums, counts and gradients."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_case import MASKED_LM, TYPED, documents, gradient, model

from lmworks.models.build import build_model
from lmworks.models.families import family_named
from lmworks.models.multi_token import MultiTokenTransformer
from lmworks.nn.batch import pack
from lmworks.objectives.arrange import ArrangedRows
from lmworks.objectives.causal_lm import causal_lm
from lmworks.objectives.contrastive import contrastive, siglip
from lmworks.objectives.distillation import distillation
from lmworks.objectives.fill_in_the_middle import FillInTheMiddleConfig, fill_in_the_middle
from lmworks.objectives.masked_lm import MaskingConfig, mask_documents, masked_lm
from lmworks.objectives.multi_token import multi_token
from lmworks.objectives.permutation import permutation_lm, permute
from lmworks.objectives.replaced_tokens import mask_for_detection, replaced_token_detection
from lmworks.objectives.segment_pairs import (
    SegmentPairConfig,
    masked_lm_and_segment_pair,
    segment_pair,
    segment_pair_batch,
    sentence_order_pairs,
)
from lmworks.objectives.source_target import for_decoder, for_encoder_decoder, prefix_lm, prefix_pairs, seq2seq
from lmworks.objectives.span_corruption import SpanCorruptionConfig, span_corruption
from lmworks.objectives.ul2 import UL2Config, ul2


class Case(NamedTuple):
    build: Callable
    objective: Callable
    arrangement: Callable


class Electra(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = model("encoder", MASKED_LM, **TYPED)
        self.discriminator = model("encoder", {"kind": "token_classification", "num_labels": 1}, seed=1, **TYPED)


MASKING = MaskingConfig(mask_token_id=4, vocab_size=61, special_token_ids=(1, 2))
MARKS = SegmentPairConfig(cls_token_id=1, sep_token_id=2)
FIM = FillInTheMiddleConfig(prefix_token_id=55, suffix_token_id=56, middle_token_id=57)
SENTINELS = tuple(range(60, 50, -1))
SPANS = SpanCorruptionConfig(sentinel_token_ids=SENTINELS, eos_token_id=1)
MIXTURE = UL2Config(sentinel_token_ids=SENTINELS, mode_token_ids={"R": 2, "S": 3, "X": 4}, eos_token_id=1)


def encoder():
    return model("encoder", MASKED_LM, **TYPED)


def as_pairs(docs, draws):
    """Two documents of each, for contrast."""
    whole = [part for d in docs for part in (d, d[::-1])]
    return pack([(d.tolist(), d.tolist(), [0.0] * len(d)) for d in whole])


def segment_pairs(docs, draws, masking=None):
    return segment_pair_batch(sentence_order_pairs(docs, draws, MARKS), draws, masking)


CASES = {
    "causal": Case(lambda: model("decoder"), partial(causal_lm, z_loss=0.01, label_smoothing=0.1),
                   partial(fill_in_the_middle, config=FIM)),
    "masked": Case(encoder, masked_lm, partial(mask_documents, config=MASKING)),
    "replaced": Case(Electra, replaced_token_detection, partial(mask_for_detection, config=MASKING)),
    "spans": Case(lambda: model("both"), seq2seq, for_encoder_decoder(partial(span_corruption, config=SPANS), 0)),
    "ul2, decoder": Case(lambda: model("decoder"), prefix_lm, for_decoder(partial(ul2, config=MIXTURE))),
    "prefix": Case(lambda: model("decoder"), prefix_lm, for_decoder(prefix_pairs)),
    "permutation": Case(
        lambda: build_model(family_named("xlnet").config_from_hf(
            {"vocab_size": 61, "d_model": 12, "n_layer": 1, "n_head": 3, "d_inner": 16, "initializer_range": 0.3}),
            seed=0).eval(), permutation_lm, permute),
    "multi-token": Case(lambda: MultiTokenTransformer(model("decoder"), 2, seed=0), multi_token,
                        partial(fill_in_the_middle, config=FIM)),
    "contrastive": Case(lambda: model("encoder", {"kind": "embedding"}),
                        partial(contrastive, loss=siglip, group_pairs=2), as_pairs),
    "pairs": Case(encoder, segment_pair, segment_pairs),
    "masked pairs": Case(encoder, masked_lm_and_segment_pair, partial(segment_pairs, masking=MASKING)),
    "distillation": Case(lambda: model("decoder"), partial(distillation, teacher=model("decoder", seed=1), beta=0.5),
                         partial(fill_in_the_middle, config=FIM)),
}  # fmt: skip


class Stored:
    """Six rows of two documents each."""

    def rows(self, start, count):
        rows = [documents(4 + 3 * r, 21 - 2 * r, seed=r) for r in range(start, start + count)]
        return pack([(ids, ids, [1.0] * len(ids)) for row in rows for ids in row])


def sums(case, built, split):
    """Loss, count, metrics and gradient over micro-batches of so many rows."""
    rows = ArrangedRows(Stored(), case.arrangement, seed=3)
    built.zero_grad()
    totals, start = {}, 0
    for count in split:
        loss = case.objective(built, rows.rows(start, count))
        loss.loss_sum.backward()
        for name, value in {"loss": loss.loss_sum, "targets": loss.n_targets, **loss.metrics}.items():
            totals[name] = totals.get(name, 0.0) + value.detach().item()
        start += count
    return totals, gradient(built)


WHOLE = {}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=6, deadline=None)
@given(cuts=st.sets(st.integers(1, 5)))
def test_any_split_gives_the_same_sums(name, cuts):
    case = CASES[name]
    if name not in WHOLE:
        built = case.build()
        WHOLE[name] = (built, *sums(case, built, [6]))
    built, totals, grad = WHOLE[name]
    edges = [0, *sorted(cuts), 6]
    split_totals, split_grad = sums(case, built, [b - a for a, b in pairwise(edges)])
    assert totals["targets"] > 0
    assert split_totals == pytest.approx(totals, rel=1e-5)
    assert (split_grad - grad).norm() <= 1e-5 * grad.norm()
    assert grad.norm() > 0
