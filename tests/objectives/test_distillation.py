"""Distillation of models: the loss against its formula, its parts, and what is refused."""

import pytest
import torch
from objective_case import assert_same_gradients, cross_entropies, documents, model
from torch.nn import functional as F

from lmworks.core.errors import ConfigError
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import next_token_document, pack
from lmworks.objectives.distillation import distillation

BATCH = pack(
    [
        next_token_document(d.tolist(), [0.0, 0.5] + [1.0] * (len(d) - 2))
        for d in documents(9, 3, 12)
    ]
)  # fmt: skip


@pytest.mark.parametrize("hard_weight", [0.0, 0.25])
def test_the_loss_is_its_formula(hard_weight):
    student, teacher = model("decoder"), model("decoder", seed=1)
    loss = distillation(student, BATCH, teacher=teacher, temperature=2.0, hard_weight=hard_weight)
    context = PackedContext(BATCH.cu_seqlens)
    hidden = student(BATCH.input_ids, BATCH.positions, context)
    taught = teacher.logits(teacher(BATCH.input_ids, BATCH.positions, context)).detach()
    soft = F.kl_div((student.logits(hidden) / 2).log_softmax(-1), (taught / 2).softmax(-1), reduction="none").sum(-1)
    soft = 4 * (soft @ BATCH.loss_weights)
    hard = cross_entropies(student, hidden, BATCH.targets) @ BATCH.loss_weights
    wanted = (1 - hard_weight) * soft + hard_weight * hard
    torch.testing.assert_close(loss.loss_sum, wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(loss.metrics["divergence"], soft.detach(), rtol=1e-5, atol=1e-4)
    assert ("cross_entropy" in loss.metrics) == bool(hard_weight)
    assert loss.n_targets == BATCH.loss_weights.sum()
    assert_same_gradients(student, loss.loss_sum, wanted)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_student_comes_to_say_what_its_teacher_says(beta):
    student, teacher = model("decoder"), model("decoder", seed=1)
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = distillation(student, BATCH, teacher=teacher, beta=beta)
        optimizer.zero_grad()
        (loss.loss_sum / loss.n_targets).backward()
        optimizer.step()
        losses.append((loss.loss_sum / loss.n_targets).item())
    assert losses[-1] < 0.2 * losses[0]


def test_what_cannot_be_is_named():
    student = model("decoder")
    with pytest.raises(ConfigError, match="has 61 entries and the teacher's 64"):
        distillation(student, BATCH, teacher=model("decoder", vocab_size=64))
    for changes in ({"beta": 1.5}, {"temperature": 0.0}, {"hard_weight": -0.1}):
        with pytest.raises(ConfigError, match="Correct the one that does not"):
            distillation(student, BATCH, teacher=student, **changes)
