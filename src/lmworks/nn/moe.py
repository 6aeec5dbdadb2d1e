"""A feed-forward net of many experts of which each token takes a few (Shazeer et al., 2017, arXiv:1701.06538).

Groups are as long as they are, nothing is padded: tokens are sorted by expert and each projection is one grouped
product (MegaBlocks, arXiv:2211.15841). Knows no way to choose experts (`nn/routing.py` does) and no loss.

Legend: `N` tokens, `X` experts, `k` experts per token, `E` model dim, `I` an expert's inner dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmworks.kernels.gated_activation import ACTIVATIONS
from lmworks.kernels.grouped_matmul import grouped_matmul
from lmworks.nn.routing import Router


class Experts(nn.Module):
    """The weights of X equally shaped MLPs, stacked, and their application to tokens sorted by expert."""

    def __init__(
        self, num_experts: int, hidden_size: int, intermediate_size: int, hidden_act: str, *, gated: bool, bias: bool,
        swiglu_limit: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.swiglu_limit = swiglu_limit
        wide, narrow = (num_experts, intermediate_size, hidden_size), (num_experts, hidden_size, intermediate_size)
        self.gate_proj = _weights(wide) if gated else None
        self.gate_proj_bias = _biases(wide) if gated and bias else None
        self.up_proj = _weights(wide)
        self.up_proj_bias = _biases(wide) if bias else None
        self.down_proj = _weights(narrow)
        self.down_proj_bias = _biases(narrow) if bias else None
        self.activation = ACTIVATIONS[hidden_act]

    def forward(self, x: Tensor, group_sizes: Tensor) -> Tensor:
        """[M, E] sorted by expert, and [X] rows of each -> [M, E]."""
        up = _project(x, self.up_proj, self.up_proj_bias, group_sizes)
        if self.gate_proj is None:
            inner = self.activation(up)
        else:
            inner = self.glu(_project(x, self.gate_proj, self.gate_proj_bias, group_sizes), up)
        return _project(inner, self.down_proj, self.down_proj_bias, group_sizes)

    def glu(self, gate: Tensor, up: Tensor) -> Tensor:
        """act(gate) · up, or what gpt-oss makes of it: see `MixtureOfExperts`."""
        if self.swiglu_limit is not None:
            gate, up = gate.clamp(max=self.swiglu_limit), up.clamp(-self.swiglu_limit, self.swiglu_limit) + 1
        return self.activation(gate) * up


def _project(x: Tensor, weight: Tensor, bias: Tensor | None, group_sizes: Tensor) -> Tensor:
    y = grouped_matmul(x, weight, group_sizes)
    return y if bias is None else y + bias.repeat_interleave(group_sizes, 0, output_size=len(x))


def _weights(shape: tuple[int, int, int]) -> nn.Parameter:
    """Random, keeping the variance of their input."""
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=shape[-1] ** -0.5))


def _biases(shape: tuple[int, int, int]) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape[:2]))


class MixtureOfExperts(nn.Module):
    """Σ weight · expert(x) over the chosen experts, plus the expert that every token takes, if there is one.

    Args:
        router: chooses; its `num_experts` is X.
        hidden_size: E.
        moe_intermediate_size: I.
        hidden_act: a name of `kernels.gated_activation.ACTIVATIONS`.
        gated: experts are down(act(gate(x)) · up(x)), else down(act(up(x))).
        bias: of the experts' projections.
        shared_experts: applied to every token (DeepSeekMoE, arXiv:2401.06066): several are one wide MLP.
        shared_expert_gate: multiply their output by a sigmoid of a projection of x (Qwen2-MoE).
        swiglu_limit: gates are at most this, ups within it and then one more: act(gate) · (up + 1) (gpt-oss).
    """

    def __init__(
        self,
        router: Router,
        hidden_size: int,
        moe_intermediate_size: int,
        hidden_act: str,
        *,
        gated: bool = True,
        bias: bool = False,
        shared_experts: nn.Module | None = None,
        shared_expert_gate: bool = False,
        swiglu_limit: float | None = None,
    ) -> None:
        super().__init__()
        self.router = router
        self.experts = Experts(
            router.num_experts, hidden_size, moe_intermediate_size, hidden_act, gated=gated, bias=bias,
            swiglu_limit=swiglu_limit,
        )  # fmt: skip
        self.shared_experts = shared_experts
        self.shared_expert_gate = nn.Linear(hidden_size, 1, bias=False) if shared_expert_gate else None

    def forward(self, x: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """[N, E] -> [N, E]; `cu_seqlens` as in `Router.forward`.

        A token's result does not depend on the tokens beside it but for rounding, unless the router's
        `expert_capacity` makes those of its document compete.
        """
        chosen, weights = self.router(x, cu_seqlens)
        expert, order = chosen.flatten().sort(stable=True)
        # Not by bincount, which makes the CPU wait for a GPU.
        numbers = torch.arange(self.router.num_experts + 1, device=x.device)
        group_sizes = torch.searchsorted(expert, numbers).diff()
        y = self.experts(x.index_select(0, order // chosen.shape[1]), group_sizes)
        # Back in token order, then summed: the same bits on every run, which index_add_ does not promise on CUDA.
        y = y.index_select(0, order.argsort()).view(*chosen.shape, x.shape[1])
        return self._with_shared(x, (y * weights[:, :, None]).sum(1).to(x.dtype))

    def _with_shared(self, x: Tensor, routed: Tensor) -> Tensor:
        if self.shared_experts is None:
            return routed
        shared = self.shared_experts(x)
        return routed + (shared if self.shared_expert_gate is None else self.shared_expert_gate(x).sigmoid() * shared)


def moe_reference(moe: MixtureOfExperts, x: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Every expert on every token, weighted by 0 where it was not chosen; the oracle of `MixtureOfExperts`."""
    chosen, weights = moe.router(x, cu_seqlens)
    e, routed = moe.experts, torch.zeros_like(x)
    for i in range(moe.router.num_experts):
        inner = F.linear(x, e.up_proj[i], None if e.up_proj_bias is None else e.up_proj_bias[i])
        if e.gate_proj is None:
            inner = e.activation(inner)
        else:
            gate = F.linear(x, e.gate_proj[i], None if e.gate_proj_bias is None else e.gate_proj_bias[i])
            inner = e.glu(gate, inner)
        y = F.linear(inner, e.down_proj[i], None if e.down_proj_bias is None else e.down_proj_bias[i])
        routed = routed + (weights * (chosen == i)).sum(1, keepdim=True).to(x.dtype) * y
    return moe._with_shared(x, routed)
