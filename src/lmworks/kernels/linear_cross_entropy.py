"""The head and its cross-entropy in one operation that never holds the logits of all tokens.

For N tokens and a vocabulary of V, logits and their gradient are N·V numbers each: often the largest
tensors of a training step. Here the gradients are formed in the forward pass, chunk by chunk, as the
loss is linear in the incoming gradient (the idea of Liger Kernel, arXiv:2410.10989, and of Cut
Cross-Entropy, arXiv:2411.09009). Knows no model and never divides by a count.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lmworks.kernels import training_operations  # noqa: F401 - registers the operations
from lmworks.kernels.native.training import trains_natively


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, loss_weights: Tensor, *, bias: Tensor | None = None,
    softcap: float | None = None, z_loss: float = 0.0, label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """The formula with all logits at once; the oracle. Shapes as in `linear_cross_entropy`."""
    logits = F.linear(hidden, weight, bias).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    return ((losses + z_loss * logits.logsumexp(-1).square()) * loss_weights).sum()


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, loss_weights: Tensor, *, bias: Tensor | None = None,
    softcap: float | None = None, chunk_tokens: int = 512, z_loss: float = 0.0, label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """Σ loss_weights · -log softmax(cap(hidden weightᵀ + bias))[targets], in nats.

    With Z the sum of a row's exponentials, `z_loss` adds z_loss · (log Z)² to the row, which keeps logits from
    drifting (PaLM, arXiv:2204.02311). `label_smoothing` mixes the target with the whole vocabulary
    (arXiv:1512.00567). Where they are 0 they cost nothing.

    Args:
        hidden: [N, E] activations; products are taken in this type, sums in float32.
        weight: [V, E] head, of any floating type.
        targets: [N] int64 ids below V, also where the weight is 0.
        loss_weights: [N] float32; rows of weight 0 cost nothing and get no gradient. Not differentiated.
        bias: [V] of the head.
        softcap: bound of the logits, cap(x) = softcap · tanh(x / softcap) (Gemma 2).
        chunk_tokens: rows whose logits exist at one time.
        z_loss: factor of the squared normalizer, such as 1e-4.
        label_smoothing: share of the target that is spread evenly over the vocabulary, below 1.

    Returns:
        Scalar float32. Its gradient flows to `hidden`, `weight` and `bias`.
    """
    grads = gradients_wanted(hidden, weight, bias)
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]  # a method of torch's without types
        hidden, weight, bias, targets, loss_weights, softcap, chunk_tokens, z_loss, label_smoothing, grads
    )
    return loss


def gradients_wanted(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[bool, bool]:
    """Whether gradients are wanted of activations, and of their head.

    Inside a `torch.autograd.Function` torch records nothing, so it must be told beforehand.
    """
    wanted = torch.is_grad_enabled()
    head = weight.requires_grad or (bias is not None and bias.requires_grad)
    return wanted and hidden.requires_grad, wanted and head


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and both gradients in one pass; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        loss_weights: Tensor,
        softcap: float | None,
        chunk_tokens: int,
        z_loss: float,
        label_smoothing: float,
        grads: tuple[bool, bool],
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            kept = loss_weights.nonzero().squeeze(1)
            rows = hidden.index_select(0, kept)
            cast = weight.to(hidden.dtype)
            loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
            d_rows = torch.empty_like(rows) if grads[0] else None
            d_weight = torch.zeros_like(weight, dtype=torch.float32) if grads[1] else None
            d_bias = torch.zeros_like(bias, dtype=torch.float32) if grads[1] and bias is not None else None
            chunks = zip(
                torch.split(rows, chunk_tokens),
                torch.split(targets.index_select(0, kept), chunk_tokens),
                torch.split(loss_weights.index_select(0, kept).float(), chunk_tokens),
                strict=True,
            )
            native = softcap is None and trains_natively(rows, cast)
            of_chunk = _native_chunk if native else _chunk
            for i, (x, target, scale) in enumerate(chunks if kept.numel() else ()):
                logits = F.linear(x, cast, None if bias is None else bias.to(x.dtype))
                part, d_logits = of_chunk(logits, target, scale, softcap, z_loss, label_smoothing, any(grads))
                loss += part
                if d_logits is None:
                    continue
                if d_rows is not None:
                    torch.mm(d_logits, cast, out=d_rows[i * chunk_tokens : i * chunk_tokens + len(x)])
                if d_weight is not None:
                    d_weight += d_logits.mT @ x
                if d_bias is not None:
                    d_bias += d_logits.sum(0, dtype=torch.float32)
        ctx.save_for_backward(kept, d_rows, d_weight, d_bias)
        ctx.shape, ctx.weight_dtype = hidden.shape, weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, d_rows, d_weight, d_bias = ctx.saved_tensors
        d_hidden = None
        if d_rows is not None:
            scaled = _scaled(d_rows, grad)
            whole = len(kept) == ctx.shape[0]
            d_hidden = scaled if whole else scaled.new_zeros(ctx.shape).index_copy_(0, kept, scaled)
        if d_weight is not None:
            d_weight = _scaled(d_weight, grad).to(ctx.weight_dtype)
        if d_bias is not None:
            d_bias = _scaled(d_bias, grad).to(ctx.weight_dtype)
        return d_hidden, d_weight, d_bias, *(None,) * 7


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """Times a scalar, which on CPU, where it costs nothing to look, is usually found to be 1."""
    return gradient if factor.device.type == "cpu" and float(factor) == 1.0 else gradient * factor.to(gradient.dtype)


def _chunk(
    logits: Tensor, target: Tensor, scale: Tensor, softcap: float | None, z_loss: float, label_smoothing: float,
    gradient: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Loss of some rows, and its gradient by their logits before the cap where it is wanted."""
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    # One exponential per logit: the largest probability, never below 1/V, gives the normalizer back.
    p = logits.softmax(-1, dtype=torch.float32)
    log_sum = logits.amax(-1).float() - p.amax(-1).log()
    expected = logits.gather(1, target[:, None]).squeeze(1).float()
    if label_smoothing:
        everywhere = logits.mean(-1, dtype=torch.float32)
        expected = (1 - label_smoothing) * expected + label_smoothing * everywhere
    loss = (log_sum - expected) @ scale
    if z_loss:
        loss += z_loss * (log_sum.square() @ scale)
    if not gradient:
        return loss, None
    if z_loss:
        p.mul_(1 + 2 * z_loss * log_sum[:, None])
    if label_smoothing:
        p.sub_(label_smoothing / p.shape[1])
    p[torch.arange(len(target), device=p.device), target] -= 1 - label_smoothing
    if softcap is not None:
        p.mul_(1 - (logits.float() / softcap).square())
    return loss, p.mul_(scale[:, None]).to(logits.dtype)  # softmax minus what is expected, times the row's weight


def _native_chunk(
    logits: Tensor, target: Tensor, scale: Tensor, _softcap: float | None, z_loss: float, label_smoothing: float,
    gradient: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """As `_chunk` without a cap, in bfloat16 on CPU: the gradient takes the place of the logits."""
    losses = torch.ops.lmworks.cross_entropy_(logits, target, scale, z_loss, label_smoothing, gradient)
    return losses.sum(), logits if gradient else None
