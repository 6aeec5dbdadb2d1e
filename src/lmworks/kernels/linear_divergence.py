"""Divergence between what two heads say, in one operation that never holds the logits of all tokens.

Distillation needs a whole distribution of the teacher and of the student per token: four tensors of N·V numbers if
written down. Here both exist for a chunk of rows at a time, and the student's gradients are formed in the forward
pass, as in `linear_cross_entropy`. Knows no model and never divides by a count.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lmworks.kernels.linear_cross_entropy import gradients_wanted


def linear_divergence_reference(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, loss_weights: Tensor, *,
    bias: Tensor | None = None, teacher_bias: Tensor | None = None, softcap: float | None = None,
    teacher_softcap: float | None = None, beta: float = 0.0, temperature: float = 1.0,
) -> Tensor:  # fmt: skip
    """The formula with all logits at once; the oracle. Shapes as in `linear_divergence`."""
    student = (_logits(hidden, weight, bias, softcap).float() / temperature).log_softmax(-1)
    teacher = (
        _logits(teacher_hidden, teacher_weight, teacher_bias, teacher_softcap).float() / temperature
    ).log_softmax(-1)
    if beta == 0:
        losses = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    elif beta == 1:
        losses = F.kl_div(teacher, student, reduction="none", log_target=True).sum(-1)
    else:
        mixed = (beta * teacher.exp() + (1 - beta) * student.exp()).log()
        of_teacher = F.kl_div(mixed, teacher, reduction="none", log_target=True).sum(-1)
        of_student = F.kl_div(mixed, student, reduction="none", log_target=True).sum(-1)
        losses = beta * of_teacher + (1 - beta) * of_student
    return temperature**2 * (losses * loss_weights).sum()


def linear_divergence(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, loss_weights: Tensor, *,
    bias: Tensor | None = None, teacher_bias: Tensor | None = None, softcap: float | None = None,
    teacher_softcap: float | None = None, beta: float = 0.0, temperature: float = 1.0, chunk_tokens: int = 512,
) -> Tensor:  # fmt: skip
    """Σ loss_weights · temperature² · D(teacher, student) of the tempered distributions, in nats.

    With p of the teacher and q of the student, D is KL(p‖q) where `beta` is 0, KL(q‖p) where it is 1, and between
    them β·KL(p‖m) + (1-β)·KL(q‖m) with m = β·p + (1-β)·q (generalized Jensen-Shannon, GKD, arXiv:2306.13649). The
    square of the temperature keeps gradients of one size (arXiv:1503.02531).

    Args:
        hidden: [N, E] activations of the student; products are taken in this type, sums in float32.
        weight: [V, E] the student's head.
        teacher_hidden: [N, F] activations of the teacher. Not differentiated, nor is its head.
        teacher_weight: [V, F].
        loss_weights: [N] float32; rows of weight 0 cost nothing and get no gradient. Not differentiated.
        bias: [V] of the student's head.
        teacher_bias: [V].
        softcap: bound of the student's logits, as in `linear_cross_entropy`.
        teacher_softcap: of the teacher's.
        beta: from 0 to 1.
        temperature: divides both logits, above 0.
        chunk_tokens: rows whose logits exist at one time.

    Returns:
        Scalar float32. Its gradient flows to `hidden`, `weight` and `bias`.
    """
    grads = gradients_wanted(hidden, weight, bias)
    teacher = (teacher_hidden.detach(), teacher_weight.detach(), teacher_bias, teacher_softcap)
    loss: Tensor = _LinearDivergence.apply(  # type: ignore[no-untyped-call]  # a method of torch's without types
        hidden, weight, bias, softcap, teacher, loss_weights, beta, temperature, chunk_tokens, grads
    )
    return loss


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = F.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _divergence(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """D of each row [n], and its derivative by the student's tempered logits [n, V]."""
    q = log_q.exp()
    if beta == 0:
        p = log_p.exp()
        return (p * (log_p - log_q)).sum(-1), q - p
    if beta == 1:
        gap = log_q - log_p
        loss = (q * gap).sum(-1)
        return loss, q * (gap - loss[:, None])
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))
    gap = log_q - log_m
    of_student = (q * gap).sum(-1)
    loss = beta * (log_p.exp() * (log_p - log_m)).sum(-1) + (1 - beta) * of_student
    # The mixture's own derivative cancels against the teacher's term.
    return loss, (1 - beta) * q * (gap - of_student[:, None])


class _LinearDivergence(torch.autograd.Function):
    """Loss and the student's gradients in one pass; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        teacher: tuple[Tensor, Tensor, Tensor | None, float | None],
        loss_weights: Tensor,
        beta: float,
        temperature: float,
        chunk_tokens: int,
        grads: tuple[bool, bool],
    ) -> Tensor:
        teacher_hidden, teacher_weight, teacher_bias, teacher_softcap = teacher
        with torch.autocast(hidden.device.type, enabled=False):
            kept = loss_weights.nonzero().squeeze(1)
            cast, teacher_cast = weight.to(hidden.dtype), teacher_weight.to(teacher_hidden.dtype)
            loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
            d_hidden = torch.zeros_like(hidden) if grads[0] else None
            d_weight = torch.zeros_like(weight, dtype=torch.float32) if grads[1] else None
            d_bias = torch.zeros_like(bias, dtype=torch.float32) if grads[1] and bias is not None else None
            for rows in torch.split(kept, chunk_tokens) if kept.numel() else ():
                x, scale = hidden[rows], loss_weights[rows].float()
                logits = _logits(x, cast, bias, softcap)
                taught = _logits(teacher_hidden[rows], teacher_cast, teacher_bias, teacher_softcap)
                log_q = (logits.float() / temperature).log_softmax(-1)
                losses, slope = _divergence((taught.float() / temperature).log_softmax(-1), log_q, beta)
                loss += temperature**2 * (losses @ scale)
                if d_hidden is None and d_weight is None:
                    continue
                if softcap is not None:
                    slope = slope * (1 - (logits.float() / softcap).square())
                d_logits = (slope * (temperature * scale)[:, None]).to(x.dtype)
                if d_hidden is not None:
                    d_hidden[rows] = d_logits @ cast
                if d_weight is not None:
                    d_weight += d_logits.mT @ x
                if d_bias is not None:
                    d_bias += d_logits.sum(0, dtype=torch.float32)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        if d_hidden is not None:
            d_hidden = d_hidden * grad.to(d_hidden.dtype)
        if d_weight is not None:
            d_weight = (d_weight * grad).to(ctx.weight_dtype)
        if d_bias is not None:
            d_bias = (d_bias * grad).to(ctx.weight_dtype)
        return d_hidden, d_weight, d_bias, *(None,) * 7
