"""A student learns from what a teacher says of every next token. Knows no trainer and no model class."""

from __future__ import annotations

import torch

from lmworks.core.errors import ConfigError
from lmworks.kernels.linear_divergence import linear_divergence
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.batch import Batch
from lmworks.objectives.causal_lm import CausalLM, token_loss, whole_head
from lmworks.objectives.loss import Loss


def distillation(
    model: CausalLM, batch: Batch, *, teacher: CausalLM, beta: float = 0.0, temperature: float = 1.0,
    hard_weight: float = 0.0,
) -> Loss:  # fmt: skip
    """Σ weight · D(teacher, student) over the targets, in nats.

    The same loss serves tokens of a corpus and tokens that the student wrote (on-policy, GKD, arXiv:2306.13649).
    The logits of all tokens never exist, of neither model.

    Args:
        model: the student.
        batch: packed documents; `loss_weights` say at which tokens both are compared.
        teacher: of the same vocabulary, in evaluation mode; it gets no gradient.
        beta: 0 is KL(teacher‖student), 1 is KL(student‖teacher), between is Jensen-Shannon; see `linear_divergence`.
        temperature: softens both; see `linear_divergence`.
        hard_weight: share of the cross-entropy with the batch's own targets in the loss, from 0 to 1.

    Returns:
        The sum, the count, and its parts as metrics: "divergence", and "cross_entropy" where it has a weight.

    Raises:
        ConfigError: the vocabularies differ in size, or a number is impossible.
    """
    sizes = len(model.lm_head.weight), len(teacher.lm_head.weight)
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the student's vocabulary has {sizes[0]} entries and the teacher's {sizes[1]}: their tokens differ",
            "Distill between models of one tokenizer, and cut padding rows off both heads",
        )
    if not (0 <= beta <= 1 and 0 <= hard_weight <= 1 and temperature > 0):
        raise ConfigError(
            f"beta {beta} and hard_weight {hard_weight} lie from 0 to 1, and temperature {temperature} is above 0",
            "Correct the one that does not",
        )
    context = PackedContext(batch.cu_seqlens)
    with torch.no_grad():
        taught = teacher.before_head(teacher(batch.input_ids, batch.positions, context))
    hidden = model(batch.input_ids, batch.positions, context)
    weight, bias = whole_head(model.lm_head)
    divergence = linear_divergence(
        model.before_head(hidden), weight, taught, teacher.lm_head.weight, batch.loss_weights,
        bias=bias, teacher_bias=teacher.lm_head.bias, softcap=model.logit_softcap,
        teacher_softcap=teacher.logit_softcap, beta=beta, temperature=temperature,
    )  # fmt: skip
    metrics = {"divergence": divergence.detach()}
    loss = divergence
    if hard_weight:
        cross_entropy = token_loss(model, hidden, batch.targets, batch.loss_weights)
        metrics["cross_entropy"] = cross_entropy.detach()
        loss = (1 - hard_weight) * divergence + hard_weight * cross_entropy
    return Loss(loss, batch.loss_weights.sum(), metrics)
