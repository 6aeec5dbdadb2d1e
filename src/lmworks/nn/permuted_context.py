"""Two-stream attention: tokens are predicted in an order of their own, not from left to right (arXiv:1906.08237).

The stream of targets is queries only: its rows stand after all packed tokens, and what they offer as keys and values is
left out. An order is a causal mask on another clock: a token sees what is not later than itself, a target sees what is
earlier. Knows no objective: `objectives/permutation.py` draws orders.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmworks.kernels.masks import Causal, Places
from lmworks.kernels.scores import Scores, attention_formula
from lmworks.nn.attention_context import PackedContext


@dataclass(frozen=True, kw_only=True)
class PermutedContext(PackedContext):
    """Whole documents laid end to end, seen in an order of their own."""

    ranks: Tensor
    """[N] place of each token in its document's order. Equal ranks see each other: 0 for all that is given."""
    targets: Tensor
    """[T] ascending indices of the packed tokens to predict from what is ranked before them."""

    def lengths(self) -> Tensor:
        """[N+T], see `AttentionContext.lengths`."""
        lengths = super().lengths()
        return torch.cat([lengths, lengths[self.targets]])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention of tokens and targets to the tokens of their document, in its order.

        Args:
            layer: not used.
            query: [N+T, H, D]: of the tokens, then of the targets.
            key: [N+T, H, D], of which those of the tokens are used.
            value: [N+T, H, Dv].
            scores: its mask gives way to the order; it has no bias, which would take positions.

        Returns:
            [N+T, H, Dv]; zero for a target that sees nothing.
        """
        assert scores.bias is None, "an order has no distances: use positions that are not a bias"
        tokens = self.cu_seqlens.tolist()
        count = tokens[-1]
        targets = (count + torch.searchsorted(self.targets, self.cu_seqlens.to(self.targets.dtype))).tolist()
        clock = torch.cat([2 * self.ranks, 2 * self.ranks[self.targets] - 1])  # a target is just before its token
        everything = torch.arange(len(query), device=query.device)
        of_tokens, of_targets = [], []
        for document in range(len(tokens) - 1):
            own = slice(tokens[document], tokens[document + 1])
            rows = torch.cat([everything[slice(*bounds[document : document + 2])] for bounds in (tokens, targets)])
            places = Places(clock[rows][:, None], clock[own][None, :])
            q, k, v = (t.transpose(0, 1) for t in (query[rows], key[own], value[own]))
            attended = attention_formula(q, k, v, replace(scores, mask=Causal()), places).transpose(0, 1)
            size = own.stop - own.start
            of_tokens.append(attended[:size])
            of_targets.append(attended[size:])
        return torch.cat(of_tokens + of_targets)
