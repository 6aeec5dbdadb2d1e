"""The vocabulary's table and head, divided by token ids: lookups, logits, and a cross-entropy that gathers none.

Every rank holds a run of the ids. The loss needs of the others three numbers per token: the largest logit, the sum of
exponentials, the target's logit (loss parallelism; Megatron-LM, arXiv:1909.08053, section 3). Knows no model class.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from lmworks.parallel.collectives import copied, joined, summed


def local(parameter: Tensor) -> Tensor:
    """The caller's part of a divided parameter, differentiable; a whole one as it is."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


class DividedEmbedding(nn.Module):
    """Token ids to vectors, each looked up by the rank that holds it.

    Args:
        weight: [V, E] divided along V.
        group: the ranks that share it.
    """

    def __init__(self, weight: nn.Parameter, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.weight, self.group = weight, group
        self.num_embeddings, self.embedding_dim = weight.shape

    def forward(self, input_ids: Tensor) -> Tensor:
        """[N] -> [N, E]."""
        weight = local(self.weight)
        own = input_ids - dist.get_rank(self.group) * len(weight)
        elsewhere = (own < 0) | (own >= len(weight))
        found = F.embedding(own.masked_fill(elsewhere, 0), weight).masked_fill(elsewhere[:, None], 0)
        return summed(found, self.group)


class DividedHead(nn.Module):
    """Hidden states to the vocabulary, whose logits stay where they are computed.

    Args:
        weight: [V, E] divided along V.
        bias: [V], divided too.
        group: the ranks that share them.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.weight, self.group = weight, group
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)
        self.out_features, self.in_features = weight.shape

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, E] -> equal logits [N, V]."""
        bias = None if self.bias is None else local(self.bias)
        logits = F.linear(copied(hidden, self.group), local(self.weight), bias)
        return joined(logits.mT, self.out_features, self.group).mT

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, E] and bias [V], gathered for what needs the whole head; every rank uses them alike."""
        weight = joined(local(self.weight), self.out_features, self.group)
        return weight, None if self.bias is None else joined(local(self.bias), self.out_features, self.group)

    def cross_entropy(
        self, hidden: Tensor, targets: Tensor, loss_weights: Tensor, *, softcap: float | None = None,
        z_loss: float = 0.0, label_smoothing: float = 0.0, chunk_tokens: int = 512,
    ) -> Tensor:  # fmt: skip
        """As `linear_cross_entropy` of the whole head; equal on every rank, as its arguments are."""
        bias = None if self.bias is None else local(self.bias)
        loss: Tensor = _DividedCrossEntropy.apply(  # type: ignore[no-untyped-call]  # a method of torch's without types
            copied(hidden, self.group), local(self.weight), bias, targets, loss_weights,
            softcap, z_loss, label_smoothing, chunk_tokens, self.group, torch.is_grad_enabled(),
        )  # fmt: skip
        return loss


class _DividedCrossEntropy(torch.autograd.Function):
    """Gradients are formed beside the loss, chunk by chunk; that of the hidden states is partial."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, loss_weights: Tensor,
        softcap: float | None, z_loss: float, label_smoothing: float, chunk_tokens: int, group: dist.ProcessGroup,
        wanted: bool,
    ) -> Tensor:  # fmt: skip
        kept = loss_weights.nonzero().squeeze(1)
        rows, cast = hidden.index_select(0, kept), weight.to(hidden.dtype)
        first, vocabulary = dist.get_rank(group) * len(weight), len(weight) * group.size()
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_rows = torch.empty_like(rows)
        d_weight = torch.zeros_like(weight, dtype=torch.float32)
        d_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for start in range(0, len(kept), chunk_tokens):
            x, chunk = rows[start : start + chunk_tokens], kept[start : start + chunk_tokens]
            scale, own = loss_weights[chunk].float(), targets[chunk] - first
            here = ((own >= 0) & (own < len(weight))).nonzero().squeeze(1)
            logits = F.linear(x, cast, None if bias is None else bias.to(x.dtype)).float()
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            largest = logits.amax(-1)
            dist.all_reduce(largest, dist.ReduceOp.MAX, group)
            p = (logits - largest[:, None]).exp_()
            sums = torch.zeros(3, len(x), device=x.device)
            sums[0], sums[1, here], sums[2] = p.sum(-1), logits[here, own[here]], logits.sum(-1)
            dist.all_reduce(sums, group=group)
            log_sum = largest + sums[0].log()
            expected = (1 - label_smoothing) * sums[1] + label_smoothing / vocabulary * sums[2]
            loss += (log_sum - expected + z_loss * log_sum.square()) @ scale
            if not wanted:
                continue
            p *= ((1 + 2 * z_loss * log_sum) / sums[0])[:, None]
            p -= label_smoothing / vocabulary
            p[here, own[here]] -= 1 - label_smoothing
            if softcap is not None:
                p *= 1 - (logits / softcap).square()
            d_logits = p.mul_(scale[:, None]).to(x.dtype)
            torch.mm(d_logits, cast, out=d_rows[start : start + chunk_tokens])
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
        d_hidden = d_rows.new_zeros(ctx.shape).index_copy_(0, kept, d_rows * grad.to(d_rows.dtype))
        d_weight = (d_weight * grad).to(ctx.weight_dtype)
        return d_hidden, d_weight, None if d_bias is None else (d_bias * grad).to(ctx.weight_dtype), *(None,) * 8
