"""NSP and SOP: pairs by hand and by number, losses against their formulas and transformers."""

import numpy as np
import pytest
import torch
import transformers
from objective_case import MASKED_LM, TYPED, assert_same_gradients, cross_entropies, documents, model
from torch.nn import functional as F

from lmworks.models.hub import load_pretrained
from lmworks.nn.attention_context import PackedContext
from lmworks.objectives.draws import Draws
from lmworks.objectives.masked_lm import MaskingConfig
from lmworks.objectives.segment_pairs import (
    SegmentPairConfig,
    masked_lm_and_segment_pair,
    next_sentence_pairs,
    segment_pair,
    segment_pair_batch,
    sentence_order_pairs,
)

CONFIG = SegmentPairConfig(cls_token_id=1, sep_token_id=2)
MASKING = MaskingConfig(mask_token_id=4, vocab_size=61, special_token_ids=(1, 2))
ELSEWHERE = np.arange(50, 61)


def parts(pair):
    """Both segments, after a look at the marks."""
    ids = pair.token_ids.tolist()
    end = ids.index(2)
    assert ids[0] == 1
    assert ids[-1] == 2
    assert pair.token_type_ids.tolist() == [0] * (end + 1) + [1] * (len(ids) - end - 1)
    return ids[1:end], ids[end + 1 : -1]


def test_half_of_the_second_segments_are_from_elsewhere():
    [ids] = documents(8, vocab=40)
    labels = []
    for row in range(1000):
        [pair] = next_sentence_pairs([ids], Draws(0, row), CONFIG, other=lambda draws: ELSEWHERE)
        first, second = parts(pair)
        assert first == ids[: len(first)].tolist()
        assert len(second) == 8 - len(first)
        labels.append(pair.label)
        if pair.label == 0:
            assert second == ids[len(first) :].tolist()
        else:
            assert second == list(range(second[0], second[0] + len(second)))
            assert second[0] >= 50
    assert abs(np.mean(labels) - 0.5) < 0.08


def test_half_of_the_segments_are_exchanged():
    [ids] = documents(8)
    labels = []
    for row in range(1000):
        first, second = parts(pair := sentence_order_pairs([ids], Draws(0, row), CONFIG)[0])
        labels.append(pair.label)
        assert (second + first if pair.label else first + second) == ids.tolist()
    assert abs(np.mean(labels) - 0.5) < 0.08


def test_a_shorter_document_elsewhere_is_taken_whole_and_single_tokens_are_left_out():
    pairs = [
        next_sentence_pairs(documents(30, 1), Draws(0, r), CONFIG, other=lambda d: ELSEWHERE[:1]) for r in range(20)
    ]
    assert all(len(p) == 1 for p in pairs)
    assert {tuple(parts(p[0])[1]) for p in pairs if p[0].label} == {(50,)}


def batch_of(*lengths, masking=None):
    pairs = [
        p for row, n in enumerate(lengths) for p in sentence_order_pairs(documents(n, seed=row), Draws(0, row), CONFIG)
    ]
    return segment_pair_batch(pairs, Draws(0, 99), masking)


@pytest.mark.parametrize("head", [MASKED_LM, {"kind": "next_sentence"}])
def test_the_judgment_s_loss(head):
    encoder = model("encoder", head, **TYPED)
    batch = batch_of(9, 4, 20)
    loss = segment_pair(encoder, batch)
    context = PackedContext(batch.cu_seqlens)
    hidden = encoder(batch.input_ids, batch.positions, context, token_type_ids=batch.token_type_ids)
    logits = encoder.document_logits(hidden, batch.cu_seqlens)
    wanted = F.cross_entropy(logits, batch.labels, reduction="sum")
    torch.testing.assert_close(loss.loss_sum, wanted)
    assert loss.n_targets == 3
    assert loss.metrics["accuracy"] == (logits.argmax(1) == batch.labels).sum()
    assert_same_gradients(encoder, loss.loss_sum, wanted)


def test_both_losses_over_one_count():
    encoder = model("encoder", MASKED_LM, **TYPED)
    batch = batch_of(9, 4, 30, masking=MASKING)
    assert not batch.loss_weights[(batch.targets == 1) | (batch.targets == 2)].any()
    loss = masked_lm_and_segment_pair(encoder, batch)
    context = PackedContext(batch.cu_seqlens)
    hidden = encoder(batch.input_ids, batch.positions, context, token_type_ids=batch.token_type_ids)
    masked = cross_entropies(encoder, hidden, batch.targets) @ batch.loss_weights
    judged = F.cross_entropy(encoder.document_logits(hidden, batch.cu_seqlens), batch.labels, reduction="none")
    wanted = masked + judged @ torch.tensor([1.0, 1.0, 4.0])
    torch.testing.assert_close(loss.loss_sum, wanted, rtol=1e-5, atol=1e-5)
    assert loss.n_targets == 6
    torch.testing.assert_close(loss.metrics["masked_lm_loss"] + loss.metrics["segment_pair_loss"], wanted.detach())
    assert_same_gradients(encoder, loss.loss_sum, wanted)


def test_the_mean_is_bert_s(tmp_path):
    torch.manual_seed(0)
    theirs = transformers.BertForPreTraining(
        transformers.BertConfig(
            vocab_size=61, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=16,
            max_position_embeddings=64, initializer_range=0.3,
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path).eval()
    batch = batch_of(22, 22, masking=MASKING)  # equal lengths: equally many masked tokens
    loss = masked_lm_and_segment_pair(ours, batch)
    out = theirs(
        batch.input_ids.view(2, -1),
        token_type_ids=batch.token_type_ids.view(2, -1),
        labels=torch.where(batch.loss_weights > 0, batch.targets, -100).view(2, -1),
        next_sentence_label=batch.labels,
    )
    torch.testing.assert_close(loss.loss_sum / loss.n_targets, out.loss, rtol=1e-5, atol=1e-5)
