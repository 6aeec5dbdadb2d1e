"""Pairs for encoder-decoders and for decoders with a prefix: layout, loss against the formula, who sees whom."""

import numpy as np
import pytest
import torch
from objective_case import assert_same_gradients, cross_entropies, documents, model
from torch.nn import functional as F

from lmworks.nn.attention_context import PackedContext
from lmworks.objectives.draws import Draws
from lmworks.objectives.source_target import (
    SourceTarget,
    for_decoder,
    prefix_batch,
    prefix_lm,
    prefix_pairs,
    seq2seq,
    seq2seq_batch,
)

PAIRS = [SourceTarget(*documents(s, t, seed=s)) for s, t in ((4, 3), (1, 1), (6, 1), (2, 7))]


def test_layout_for_an_encoder_decoder():
    batch = seq2seq_batch(PAIRS[:2], 3)
    first, second = PAIRS[:2]
    assert batch.input_ids.tolist() == [3, *first.target[:-1], 3]
    assert batch.targets.tolist() == [*first.target, *second.target]
    assert batch.source_ids.tolist() == [*first.source, *second.source]
    assert batch.source_cu_seqlens.tolist() == [0, 4, 5]
    assert batch.cu_seqlens.tolist() == [0, 3, 4]
    assert batch.source_positions.tolist() == [0, 1, 2, 3, 0]


def test_layout_for_a_decoder():
    batch = prefix_batch(PAIRS[:2])
    first, second = PAIRS[:2]
    assert batch.input_ids.tolist() == [*first.source, *first.target[:-1], *second.source]
    assert batch.targets.tolist() == [*first.source[1:], *first.target, *second.target]
    assert batch.loss_weights.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert batch.prefix_lengths.tolist() == [4, 1]


def test_seq2seq_is_the_sum_over_pairs_alone():
    both = model("both")
    loss = seq2seq(both, seq2seq_batch(PAIRS, 3), z_loss=0.01, label_smoothing=0.1)
    wanted = torch.zeros(())
    for pair in PAIRS:
        batch = seq2seq_batch([pair], 3)
        memory = both.encode(batch.source_ids, batch.source_positions, PackedContext(batch.source_cu_seqlens))
        context = PackedContext(batch.cu_seqlens, memory_cu_seqlens=batch.source_cu_seqlens)
        logits = both.logits(both(batch.input_ids, batch.positions, context, memory=memory))
        wanted = wanted + F.cross_entropy(logits, batch.targets, reduction="sum", label_smoothing=0.1)
        wanted = wanted + 0.01 * logits.logsumexp(-1).square().sum()
    torch.testing.assert_close(loss.loss_sum, wanted, rtol=1e-5, atol=1e-4)
    assert loss.n_targets == 12
    assert_same_gradients(both, loss.loss_sum, wanted)


def test_prefix_lm_is_the_sum_over_targets():
    decoder = model("decoder")
    batch = prefix_batch(PAIRS)
    loss = prefix_lm(decoder, batch)
    context = PackedContext(batch.cu_seqlens, prefix_lengths=batch.prefix_lengths)
    hidden = decoder(batch.input_ids, batch.positions, context)
    wanted = cross_entropies(decoder, hidden, batch.targets)[batch.loss_weights > 0].sum()
    torch.testing.assert_close(loss.loss_sum, wanted, rtol=1e-5, atol=1e-4)
    assert loss.n_targets == 12
    assert_same_gradients(decoder, loss.loss_sum, wanted)


def test_the_prefix_sees_both_sides_and_the_rest_what_is_before():
    decoder = model("decoder")
    [pair] = [SourceTarget(*documents(3, 3))]

    def states(ids):
        batch = prefix_batch([pair])
        context = PackedContext(batch.cu_seqlens, prefix_lengths=batch.prefix_lengths)
        with torch.no_grad():
            return decoder(torch.as_tensor(ids), batch.positions, context)

    ids = prefix_batch([pair]).input_ids
    base = states(ids)
    seen = []
    for place in range(5):
        changed = ids.clone()
        changed[place] = 55
        seen.append([bool(x) for x in (states(changed) - base).abs().amax(1) > 1e-6])
    everyone, later, last = [True] * 5, [False, False, False, True, True], [False] * 4 + [True]
    assert seen == [everyone, everyone, everyone, later, last]


def test_prefixes_are_cut_anywhere():
    cuts = [len(prefix_pairs(documents(6), Draws(0, row))[0].source) for row in range(2000)]
    counts = np.bincount(cuts, minlength=6)
    assert counts[0] == 0
    assert abs(counts[1:] - 400).max() < 90
    [pair] = prefix_pairs(documents(1, 6), Draws(0, 0))
    assert np.concatenate(pair).tolist() == documents(1, 6)[1].tolist()
    assert for_decoder(prefix_pairs)(documents(1), Draws(0, 0)).num_tokens == 0


@pytest.mark.parametrize("kind", ["both", "decoder"])
def test_the_first_loss_is_that_of_guessing(kind):
    untrained = model(kind, initializer_range=1e-3)
    loss = seq2seq(untrained, seq2seq_batch(PAIRS, 3)) if kind == "both" else prefix_lm(untrained, prefix_batch(PAIRS))
    torch.testing.assert_close(loss.loss_sum / loss.n_targets, torch.tensor(61.0).log(), rtol=1e-2, atol=0)
