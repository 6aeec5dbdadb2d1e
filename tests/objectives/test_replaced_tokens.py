"""ELECTRA: the loss against its formula, samples against the generator's probabilities."""

from types import SimpleNamespace

import numpy as np
import torch
from objective_case import MASKED_LM, TYPED, assert_same_gradients, cross_entropies, documents, model
from torch import nn
from torch.nn import functional as F

from lmworks.nn.attention_context import PackedContext
from lmworks.objectives.draws import Draws
from lmworks.objectives.masked_lm import MaskingConfig
from lmworks.objectives.replaced_tokens import (
    ReplacedTokenBatch,
    fill_masks,
    mask_for_detection,
    replaced_token_detection,
)

CONFIG = MaskingConfig(mask_token_id=4, vocab_size=61, mask_replace_prob=1.0, random_replace_prob=0.0)


class Electra(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = model("encoder", MASKED_LM, **TYPED)
        self.discriminator = model("encoder", {"kind": "token_classification", "num_labels": 1}, seed=1, **TYPED)


def test_the_loss_is_two_cross_entropies():
    electra = Electra()
    batch = mask_for_detection(documents(9, 30, 20), Draws(0, 0), CONFIG)
    context = PackedContext(batch.cu_seqlens)
    loss = replaced_token_detection(electra, batch, discriminator_weight=3.0)
    hidden = electra.generator(batch.input_ids, batch.positions, context)
    generator_loss = cross_entropies(electra.generator, hidden, batch.targets) @ batch.loss_weights
    sampled = fill_masks(electra.generator, hidden, batch, chunk_tokens=2)
    kept = batch.loss_weights == 0
    assert torch.equal(sampled[kept], batch.targets[kept])
    assert (sampled != batch.targets).any()
    logits = electra.discriminator.token_logits(electra.discriminator(sampled, batch.positions, context))[:, 0]
    losses = F.binary_cross_entropy_with_logits(logits, (sampled != batch.targets).float(), reduction="none")
    shares = [1 / 9, 4 / 30, 3 / 20]  # masked tokens of each document
    discriminator_loss = sum(s * part.sum() for s, part in zip(shares, losses.split([9, 30, 20]), strict=True))
    wanted = generator_loss + 3.0 * discriminator_loss
    torch.testing.assert_close(loss.loss_sum, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.metrics["generator_loss"], generator_loss.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.metrics["discriminator_loss"], discriminator_loss.detach(), rtol=1e-5, atol=1e-5)
    assert loss.n_targets == 8
    assert_same_gradients(electra, loss.loss_sum, wanted)


def test_for_equal_shares_the_paper_s_weighted_means_come_out():
    electra = Electra()
    batch = mask_for_detection(documents(20, 20), Draws(0, 0), CONFIG)
    loss = replaced_token_detection(electra, batch)
    means = [loss.metrics[f"{name}_loss"] / loss.n_targets for name in ("generator", "discriminator")]
    context = PackedContext(batch.cu_seqlens)
    hidden = electra.generator(batch.input_ids, batch.positions, context)
    sampled = fill_masks(electra.generator, hidden, batch)
    logits = electra.discriminator.token_logits(electra.discriminator(sampled, batch.positions, context))[:, 0]
    torch.testing.assert_close(
        means[1], F.binary_cross_entropy_with_logits(logits, (sampled != batch.targets).float()).detach()
    )
    torch.testing.assert_close(loss.loss_sum.detach() / loss.n_targets, means[0] + 50 * means[1])


def test_samples_follow_the_generator():
    logits = torch.tensor([0.0, 2.0, -1.0, 1.0])
    generator = SimpleNamespace(
        lm_head=SimpleNamespace(weight=logits[:, None], bias=None), logit_softcap=None, before_head=lambda h: h
    )
    n = 20_000
    noise = torch.from_numpy(Draws(0, 0).uniform(n))
    zeros = torch.zeros(n, dtype=torch.int64)
    batch = ReplacedTokenBatch(zeros, zeros, torch.tensor([0, n], dtype=torch.int32), zeros, torch.ones(n), noise)
    counts = np.bincount(fill_masks(generator, torch.ones(n, 1), batch), minlength=4) / n
    assert abs(counts - logits.softmax(0).numpy()).max() < 0.018  # five deviations
    certain = ReplacedTokenBatch(**vars(batch) | {"noise": torch.full((n,), 1 - 2.0**-53, dtype=torch.float64)})
    assert (fill_masks(generator, torch.ones(n, 1), certain) == 3).all()
