"""Which experts a token goes to and how much each counts; how even the choice is, and the losses that even it.

One router covers the published ones by its values: Switch (softmax, one expert), GShard and Mixtral (softmax,
`norm_topk_prob`), Qwen-MoE, DeepSeek-V2 (groups by "max"), DeepSeek-V3 (sigmoid, groups by "top2_sum", a
correction bias) and GPT-OSS (`bias`, `norm_topk_prob`). A softmax over the chosen logits alone is the softmax
over all, normalized over the chosen, so it needs no value of its own. Knows no expert and no trainer.

Legend: `N` tokens, `X` experts, `k` experts per token, `E` model dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmworks.core.errors import ConfigError

ScoringFunction = Literal["softmax", "sigmoid"]
GroupScore = Literal["max", "top2_sum"]


@dataclass(frozen=True)
class RoutingStatistics:
    """What a router decided in one forward pass."""

    logits: Tensor
    """[N, X] float32, with their graph."""
    chosen: Tensor
    """[N, k] experts."""
    weights: Tensor
    """[N, k] float32; 0 where the expert was full."""

    @property
    def load(self) -> Tensor:
        """[X] int64 tokens that chose each expert, those it had no room for included."""
        return torch.bincount(self.chosen.flatten(), minlength=self.logits.shape[1])


class Router(nn.Module):
    """Scores every expert, chooses `num_experts_per_tok`, weighs them. Works in float32 whatever the input type.

    Args:
        hidden_size: E.
        num_experts: X.
        num_experts_per_tok: k.
        scoring_func: from logits to scores.
        norm_topk_prob: divide the chosen scores by their sum.
        routed_scaling_factor: multiplies the weights.
        n_group: groups of neighboring experts.
        topk_group: experts are chosen from the best so many groups.
        group_score: a group counts as much as its best expert, or as its two best together.
        bias: of the logits.
        correction_bias: have `e_score_correction_bias`, added to the scores for choosing and not for weighing; a
            buffer, moved by `update_correction_bias` and by no gradient.
        expert_capacity: tokens of a document that an expert takes at most, first come first served and first
            choices before second ones; the weight of the rest is 0. None drops none. A document that comes in
            parts is counted part by part, as in transformers.

    Raises:
        ConfigError: there are not `num_experts_per_tok` experts to choose from, or the groups are impossible.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        num_experts_per_tok: int,
        *,
        scoring_func: ScoringFunction = "softmax",
        norm_topk_prob: bool = True,
        routed_scaling_factor: float = 1.0,
        n_group: int = 1,
        topk_group: int = 1,
        group_score: GroupScore = "max",
        bias: bool = False,
        correction_bias: bool = False,
        expert_capacity: int | None = None,
    ) -> None:
        super().__init__()
        _require_possible(num_experts, num_experts_per_tok, n_group, topk_group, group_score)
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        nn.init.normal_(self.weight, std=hidden_size**-0.5)
        self.bias = nn.Parameter(torch.zeros(num_experts)) if bias else None
        self.e_score_correction_bias: Tensor | None
        self.register_buffer("e_score_correction_bias", torch.zeros(num_experts) if correction_bias else None)
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.scoring_func = scoring_func
        self.norm_topk_prob = norm_topk_prob
        self.routed_scaling_factor = routed_scaling_factor
        self.n_group, self.topk_group, self.group_score = n_group, topk_group, group_score
        self.expert_capacity = expert_capacity
        self.record = False
        """Whether a forward pass leaves `statistics`; they hold its graph, so take them and the loss at once."""
        self.statistics: RoutingStatistics | None = None

    def forward(self, x: Tensor, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Choose and weigh.

        Args:
            x: [N, E].
            cu_seqlens: [documents+1] bounds of the documents, from 0 to N; used by the capacity alone. None
                takes all tokens for one document.

        Returns:
            Experts [N, k] int64, first choice first, and their weights [N, k] float32.
        """
        logits = F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())
        scores = logits.softmax(-1) if self.scoring_func == "softmax" else logits.sigmoid()
        chosen = self._choose(scores.detach())
        weights = scores.gather(1, chosen)
        if self.norm_topk_prob:
            weights = weights / (weights.sum(1, keepdim=True) + 1e-20)  # all sigmoids may be 0
        weights = weights * self.routed_scaling_factor
        if self.expert_capacity is not None:
            weights = weights * _has_room(chosen, self.num_experts, self.expert_capacity, cu_seqlens)
        self.statistics = RoutingStatistics(logits, chosen, weights) if self.record else None
        return chosen, weights

    def _choose(self, scores: Tensor) -> Tensor:
        """[N, X] -> [N, k]."""
        if self.e_score_correction_bias is not None:
            scores = scores + self.e_score_correction_bias
        if self.topk_group < self.n_group:
            grouped = scores.view(-1, self.n_group, self.num_experts // self.n_group)
            best = grouped.topk(2 if self.group_score == "top2_sum" else 1).values.sum(-1)
            others = best.topk(self.n_group - self.topk_group, largest=False).indices
            excluded = torch.zeros_like(best, dtype=torch.bool).scatter_(1, others, True)
            scores = grouped.masked_fill(excluded[:, :, None], float("-inf")).flatten(1)
        return scores.topk(self.num_experts_per_tok).indices


def _require_possible(experts: int, per_token: int, n_group: int, topk_group: int, group_score: GroupScore) -> None:
    smallest = 2 if group_score == "top2_sum" and topk_group < n_group else 1
    if experts % n_group or not 1 <= topk_group <= n_group or experts // n_group < smallest:
        raise ConfigError(
            f"{experts} experts cannot be routed in n_group {n_group} with topk_group {topk_group} by {group_score!r}",
            f"n_group must divide num_experts into groups of at least {smallest} and be at least topk_group",
        )
    if not 1 <= per_token <= experts // n_group * topk_group:
        raise ConfigError(
            f"num_experts_per_tok {per_token} is impossible: {experts // n_group * topk_group} experts are eligible",
            "Lower num_experts_per_tok or raise topk_group",
        )


def _has_room(chosen: Tensor, num_experts: int, capacity: int, cu_seqlens: Tensor | None) -> Tensor:
    """[N, k] -> [N, k] bool: fewer than `capacity` choices of this document and expert came before."""
    queue = chosen
    if cu_seqlens is not None:
        tokens = torch.arange(len(chosen), device=chosen.device)
        document = torch.searchsorted(cu_seqlens[1:].to(tokens.dtype), tokens, right=True)
        queue = chosen + num_experts * document[:, None]
    standing, order = queue.mT.flatten().sort(stable=True)
    place = torch.arange(len(order), device=order.device) - torch.searchsorted(standing, standing)
    return torch.empty_like(place).index_copy_(0, order, place).view_as(chosen.mT).mT < capacity


def load_balancing_loss(layers: Sequence[RoutingStatistics]) -> Tensor:
    """X · Σ_x f_x · P_x of Switch (arXiv:2101.03961, eq. 4-6), over the tokens of all layers together.

    f is the share of tokens that chose expert x and P its mean softmax probability. f sums to k, so perfect
    balance gives k. Gradients flow through P.
    """
    tokens = sum(len(layer.logits) for layer in layers)
    share = torch.stack([layer.load for layer in layers]).sum(0) / tokens
    probability = torch.stack([layer.logits.softmax(-1).sum(0) for layer in layers]).sum(0) / tokens
    return len(share) * (share * probability).sum()


def router_z_loss(layers: Sequence[RoutingStatistics]) -> Tensor:
    """Mean of log²Σexp(logits) over the tokens of all layers (ST-MoE, arXiv:2202.08906, eq. 5): keeps logits small."""
    return torch.cat([layer.logits.logsumexp(-1) for layer in layers]).square().mean()


def update_correction_bias(correction_bias: Tensor, load: Tensor, update_speed: float = 1e-3) -> Tensor:
    """Raise the bias of experts below the mean load, lower it above (DeepSeek-V3, arXiv:2412.19437, section 2.1.2).

    Args:
        correction_bias: [X], not changed.
        load: [X] tokens per expert of a step, summed over all workers.
        update_speed: size of one move (their γ).

    Returns:
        [X], the next step's bias.
    """
    load = load.to(correction_bias.dtype)
    return correction_bias + update_speed * (load.mean() - load).sign()


@dataclass(frozen=True)
class LoadBalance:
    """How evenly experts are used."""

    max_over_mean: float
    """1 is even; X says one expert takes all."""
    entropy: float
    """Of the shares, over log X: 1 is even, 0 says one expert takes all."""


def load_balance(load: Tensor) -> LoadBalance:
    """Measure the balance of [X] tokens per expert; no tokens, and one expert, are even."""
    if len(load) == 1 or not load.any():
        return LoadBalance(1.0, 1.0)
    share = load.double() / load.sum()
    entropy = -torch.special.xlogy(share, share).sum() / math.log(len(load))
    return LoadBalance(float(share.max() * len(load)), float(entropy))
