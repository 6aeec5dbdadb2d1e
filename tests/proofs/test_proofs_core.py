"""The proofs hold, and their measures can fail: each catches a planted mistake."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from lmworks.core.errors import ArtifactError
from lmworks.core.lineage import verify
from lmworks.proofs.gradients import accumulation_gap, gradient_rows
from lmworks.proofs.parity import parity_rows
from lmworks.proofs.resume import kill_at_random, resume_rows, train
from lmworks.proofs.row import Row
from lmworks.proofs.serving import serving_rows, train_serve_gap
from lmworks.proofs.tiny import random_tokens, tiny_model


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("measure", [serving_rows, parity_rows, gradient_rows])
def test_proofs_hold_for_any_seed(measure, seed):
    for row in measure(seed):
        assert row.ok, row


@pytest.mark.slow  # `make prove` runs the proof itself
def test_resume_is_exact_and_survives_kills():
    for row in resume_rows(kills=4):
        assert row.ok, row


def test_a_nan_never_holds():
    assert not Row("", float("nan"), 1.0).ok
    assert not Row("", float("nan"), 1.0, ">=").ok


def test_gap_sees_a_model_that_serves_other_weights(monkeypatch):
    model = tiny_model("llama")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.decoder.layers[1].self_attn.v_proj.weight[3] += 0.05
    from lmworks.proofs import serving

    served = serving.LLM
    monkeypatch.setattr(serving, "LLM", lambda _, **options: served(other, **options))
    assert train_serve_gap(model, [random_tokens(20, 1)]) > 1e-3


def test_accumulation_gap_sees_a_mean_of_means(monkeypatch):
    from lmworks.proofs import gradients

    def mean_of_means(model, batch):
        loss = causal_lm(model, batch)
        return Loss(loss.loss_sum / loss.n_targets, torch.ones(()), loss.metrics)

    from lmworks.objectives.causal_lm import causal_lm
    from lmworks.objectives.loss import Loss

    monkeypatch.setattr(gradients, "causal_lm", mean_of_means)
    assert accumulation_gap(tiny_model("gpt2"), [random_tokens(n, n) for n in (5, 50, 9, 31)]) > 1e-3


def test_damage_to_a_checkpoint_is_seen(tmp_path: Path):
    train(tmp_path / "run")
    newest = max((tmp_path / "run").glob("step-*"))
    weights = next(newest.glob("state/*.distcp"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match="changed"):
        verify(newest)
    assert kill_at_random(tmp_path / "other", 1) == (0, 0)
