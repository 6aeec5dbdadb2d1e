"""Context parallelism: the tokens of packed documents split over ranks, attention reaching across.

Each rank runs the whole model on its tokens; only attention communicates, by a ring or by exchanging heads. Documents
stay apart and positions are those of the whole document. `context_parallel` turns an objective into one over the
caller's share, so trainer, model and objective are what they are on one process. Knows no model class.

The packed tokens are cut into 2 · ranks runs of equal length, and rank r takes runs r and 2 · ranks - 1 - r: under a
causal mask every rank then has the same work, be it one document or several of one length.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from lmworks.core.errors import ParallelError
from lmworks.kernels.scores import Scores
from lmworks.nn.attention import Attention
from lmworks.nn.attention_context import AttentionContext, PackedContext
from lmworks.nn.batch import Batch
from lmworks.nn.mixers import MixedAttention
from lmworks.nn.mla import MultiheadLatentAttention
from lmworks.nn.positions import RelativePositionBias
from lmworks.nn.routing import Router
from lmworks.nn.xl_attention import XLAttention
from lmworks.parallel.exchange import exchange_rows
from lmworks.parallel.randomness import own_draws
from lmworks.parallel.ring import Piece, Share, ring_attention
from lmworks.parallel.ulysses import ulysses_attention

B = TypeVar("B", bound=Batch)
ContextMethod = Literal["ring", "ulysses"]
Objective = Callable[[Any, Batch], Any]
"""From a model and a batch to an `objectives.loss.Loss`."""


def context_parallel(
    objective: Objective, group: dist.ProcessGroup, *, method: ContextMethod = "ring", gather: bool = False
) -> Objective:
    """The same objective with the tokens of each batch split over the ranks of a group.

    Args:
        objective: calls the model on the batch's tokens.
        group: its ranks give the same batch; such as `Mesh.group("context")`.
        method: "ring" takes any number of heads and sends keys and values; "ulysses" needs heads that divide among
            the ranks and sends queries and results too, but in one step, and takes any attention kernel.
        gather: give the objective all tokens and all hidden states, on every rank. For objectives that judge whole
            documents, corrupt their input or call the model more than once; the head's work is not split then.

    Returns:
        An objective whose sums are those of the caller's share: losses, counts and gradients add up over the ranks.
        It raises ParallelError for a model or a context that cannot be split, before anything is computed.
    """
    if group.size() == 1:
        return objective

    def of_share(model: nn.Module, batch: Batch) -> Any:
        require_splittable(model, method)
        split = _Split(model, group, method, None)
        if gather:
            loss, ranks = objective(split, batch), group.size()
            # Every rank has the whole loss, so each counts its part; the gradients of what was gathered add up.
            metrics = {name: metric / ranks for name, metric in loss.metrics.items()}
            return replace(loss, loss_sum=loss.loss_sum / ranks, n_targets=loss.n_targets / ranks, metrics=metrics)
        split.layout = Layout.of(batch.cu_seqlens, group)
        share = split.layout.take(batch)
        if not tried:  # on all ranks alike; another model would see pieces of documents as if they were whole
            handle = register_module_forward_pre_hook(_refuse_whole_documents)
            try:
                loss = objective(split, share)
            finally:
                handle.remove()
            tried.append(True)
            return loss
        return objective(split, share)

    tried: list[bool] = []
    return of_share


def _refuse_whole_documents(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Raise where a module is told that documents are whole while the objective has pieces of them."""
    if any(type(value) is PackedContext for value in args):
        raise ParallelError(
            f"the objective calls a {type(module).__name__} that is not split, such as a teacher, with pieces of "
            "documents",
            "Use `gather=True` for this objective",
        )


def require_splittable(model: nn.Module, method: ContextMethod) -> None:
    """Check that nothing in a model needs all tokens of a document on one rank.

    Raises:
        ParallelError: something does, and what.
    """
    for name, module in model.named_modules():
        if isinstance(module, MixedAttention):
            reason = "mixes whole documents"
        elif isinstance(module, Attention) and module.cross:
            reason = "attends to an encoder's output, which is on one rank"
        elif isinstance(module, Router) and module.expert_capacity is not None:
            reason = "counts the tokens of whole documents for its expert_capacity"
        elif isinstance(module, RelativePositionBias) and method == "ring":
            reason = "has a trained bias of scores, for which the ring has no gradient (Ulysses does)"
        else:
            continue
        raise ParallelError(f"{name} {reason}: its tokens cannot be split", "Set `context: 1` for this model")


@dataclass(frozen=True, eq=False)
class Layout:
    """Which rank holds which tokens of packed documents."""

    cu_seqlens: Tensor
    """[documents+1] of the whole batch."""
    shares: tuple[Share, ...]
    """One a rank."""
    group: dist.ProcessGroup

    @classmethod
    def of(cls, cu_seqlens: Tensor, group: dist.ProcessGroup) -> Layout:
        """Split documents over a group.

        Raises:
            ParallelError: there are fewer tokens than runs.
        """
        bounds = cu_seqlens.tolist()
        shares = zigzag_shares(bounds, group.size())
        moved = (replace(share, indices=share.indices.to(cu_seqlens.device)) for share in shares)
        return cls(cu_seqlens, tuple(moved), group)

    @property
    def share(self) -> Share:
        """The caller's."""
        return self.shares[dist.get_rank(self.group)]

    def take(self, batch: B) -> B:
        """The caller's tokens, in a batch of the same kind. Its documents are the pieces.

        Raises:
            ParallelError: the batch says more than its tokens do.
        """
        if whole := batch.document_fields():
            raise ParallelError(
                f"a {type(batch).__name__} cannot be split token by token: {', '.join(whole)} "
                f"{'is' if len(whole) == 1 else 'are'} of whole documents",
                "Use `gather=True` for this objective",
            )
        return batch.take(self.share.indices, self.bounds())

    def bounds(self) -> Tensor:
        """[pieces+1] int32, where the caller's pieces of documents begin and end among its tokens."""
        starts = [piece.start for piece in self.share.pieces]
        return torch.tensor([*starts, len(self.share)], dtype=torch.int32, device=self.cu_seqlens.device)


def zigzag_shares(cu_seqlens: Sequence[int], ranks: int) -> list[Share]:
    """Cut packed documents into 2 · `ranks` runs that differ by a token at most, and pair first with last.

    Args:
        cu_seqlens: bounds of the documents, from 0.
        ranks: how many shares.

    Raises:
        ParallelError: there are fewer tokens than runs.
    """
    total, runs = cu_seqlens[-1], 2 * ranks
    if total < runs:
        raise ParallelError(
            f"{total} tokens cannot be cut into {runs} runs, two for each of {ranks} ranks",
            "Pack more tokens into a batch, or lower `context`",
        )
    ends = [i * total // runs for i in range(runs + 1)]
    shares = []
    for rank in range(ranks):
        pieces: list[Piece] = []
        start = 0
        for run in (rank, runs - 1 - rank):
            first, last = ends[run], ends[run + 1]
            while first < last:
                document = bisect_right(cu_seqlens, first) - 1
                length = min(last, cu_seqlens[document + 1]) - first
                pieces.append(Piece(document, first - cu_seqlens[document], start, length))
                start, first = start + length, first + length
        indices = [torch.arange(ends[run], ends[run + 1]) for run in (rank, runs - 1 - rank)]
        shares.append(Share(torch.cat(indices), tuple(pieces)))
    return shares


@dataclass(frozen=True, eq=False)
class SplitContext:
    """An `AttentionContext` of the caller's tokens, which sees those of all ranks."""

    layout: Layout
    method: ContextMethod
    prefix_lengths: Tensor | None = None
    """[documents] of the whole batch."""

    @property
    def latent(self) -> bool:
        """Nothing is cached."""
        return False

    @property
    def cu_seqlens(self) -> Tensor:
        """Bounds of the caller's pieces; what needs whole documents is refused by `require_splittable`."""
        return self.layout.bounds()

    def lengths(self) -> Tensor:
        """See `AttentionContext.lengths`."""
        return PackedContext(self.layout.cu_seqlens).lengths().index_select(0, self.layout.share.indices)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """See `AttentionContext.attend`."""
        shares, group = self.layout.shares, self.layout.group
        if self.method == "ring":
            return ring_attention(query, key, value, scores, shares, group, prefix_lengths=self.prefix_lengths)
        return ulysses_attention(
            query, key, value, self.layout.cu_seqlens, scores, shares, group, prefix_lengths=self.prefix_lengths
        )

    def cross_attend(
        self, layer: int, query: Tensor, key: Tensor | None, value: Tensor | None, scores: Scores
    ) -> Tensor:
        """See `AttentionContext.cross_attend`."""
        raise AssertionError("models with cross-attention are refused by `require_splittable`")


_ATTENTION = (Attention, MultiheadLatentAttention, XLAttention)
_OF_DOCUMENTS = ("document_logits", "embed_documents", "encode", "further")


class _Split:
    """The model as the objective sees it: called with tokens, it runs on the caller's share of them.

    Args:
        model: the model.
        group: the ranks.
        method: how attention reaches across.
        layout: of the tokens that it is called with, which are the caller's; None: it is called with all tokens and
            gives back all hidden states.
    """

    def __init__(
        self, model: nn.Module, group: dist.ProcessGroup, method: ContextMethod, layout: Layout | None
    ) -> None:
        self._model, self._group, self._method, self.layout = model, group, method, layout

    def __call__(
        self, input_ids: Tensor, positions: Tensor, context: AttentionContext, *, token_type_ids: Tensor | None = None
    ) -> Tensor:
        if type(context) is not PackedContext:
            raise ParallelError(
                f"tokens seen through a {type(context).__name__} cannot be split", "Set `context: 1` for this objective"
            )
        if any(isinstance(module, Router) and module.record for module in self._model.modules()):
            raise ParallelError(
                "the objective balances experts over whole batches, of which a rank routes its own tokens alone",
                "Set router_aux_loss_coef and router_z_loss_coef to 0 and correction_bias to false, or `context: 1`",
            )
        if self.layout is not None:
            if context.prefix_lengths is not None:
                raise ParallelError(
                    "prefixes are of whole documents, of which a rank has pieces", "Use `gather=True` for prefix LM"
                )
            split, types = SplitContext(self.layout, self._method), _segments(token_type_ids)
            with own_draws(self._group, input_ids.device):
                return self._model(input_ids, positions, split, **types)
        layout = Layout.of(context.cu_seqlens, self._group)
        own = layout.share.indices
        types = _segments(None if token_type_ids is None else token_type_ids[own])
        split = SplitContext(layout, self._method, context.prefix_lengths)
        with own_draws(self._group, input_ids.device):
            hidden = self._model(input_ids[own], positions[own], split, **types)
        return _gathered(hidden, layout)

    def __getattr__(self, name: str) -> Any:
        if self.layout is not None and name in _OF_DOCUMENTS:
            raise ParallelError(
                f"`{name}` needs whole documents, of which a rank has pieces", "Use `gather=True` for this objective"
            )
        value = getattr(self._model, name)
        if isinstance(value, nn.Module) and any(isinstance(module, _ATTENTION) for module in value.modules()):
            return _Split(value, self._group, self._method, self.layout)  # one of several models, such as a generator
        return value


def _segments(token_type_ids: Tensor | None) -> dict[str, Tensor]:
    """As an argument, for models that take it."""
    return {} if token_type_ids is None else {"token_type_ids": token_type_ids}


def _gathered(hidden: Tensor, layout: Layout) -> Tensor:
    """[own tokens, E] -> [all tokens, E] on every rank; in the backward pass their gradients are added up."""
    sizes = [len(share) for share in layout.shares]
    everywhere = exchange_rows(hidden.repeat(len(sizes), 1), [len(hidden)] * len(sizes), sizes, layout.group)
    order = torch.cat([share.indices for share in layout.shares])
    return everywhere.index_select(0, order.argsort())
