"""Expert parallelism: every rank keeps some of a layer's experts, and tokens travel to them and back.

Each rank routes its own tokens as ever; where the layer would apply its experts, rows go by all-to-all to the ranks
that hold them and the results return (GShard, arXiv:2006.16668). Nothing is padded and nothing dropped, so the layer's
outputs and gradients are those of one process. Knows no model class.

An expert's gradient is whole on the rank that holds it: it has seen the tokens of all ranks of the group. Every other
weight is a replica in the group, and its gradients are to be summed there as in data parallelism.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmworks.core.errors import ParallelError
from lmworks.nn.moe import Experts, MixtureOfExperts
from lmworks.parallel.exchange import exchange_rows


class ExpertShard(nn.Module):
    """Takes the place of a layer's `Experts`; holds X / ranks of them, the first rank the first ones.

    Args:
        experts: all of the layer, their number a multiple of the ranks; weights of the caller's share are copied.
        group: the ranks that share them.
    """

    def __init__(self, experts: Experts, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group
        self.per_rank = len(experts.up_proj) // group.size()
        first = dist.get_rank(group) * self.per_rank
        self.local = _with_weights(
            experts, {n: p.detach()[first : first + self.per_rank].clone() for n, p in experts.named_parameters()}
        )

    def forward(self, x: Tensor, group_sizes: Tensor) -> Tensor:
        """[M, E] sorted by expert, and [X] rows of each -> [M, E], as `Experts.forward` on one process.

        A collective: every rank of the group calls it, be it with no rows.
        """
        ranks = self.group.size()
        arriving = torch.empty_like(group_sizes)
        dist.all_to_all_single(arriving, group_sizes.contiguous(), group=self.group)
        sent = group_sizes.view(ranks, -1).sum(1).tolist()
        received = arriving.view(ranks, -1).sum(1).tolist()
        rows = exchange_rows(x, sent, received, self.group)
        # They come by rank, each rank's by expert; the experts want them by expert.
        expert = torch.arange(self.per_rank, device=x.device).repeat(ranks)
        order = expert.repeat_interleave(arriving, output_size=len(rows)).argsort(stable=True)
        y = self.local(rows.index_select(0, order), arriving.view(ranks, -1).sum(0))
        return exchange_rows(y.index_select(0, order.argsort()), received, sent, self.group)


def parallelize_experts(model: nn.Module, group: dist.ProcessGroup) -> int:
    """Split the experts of every layer of a model among the ranks of a group, in place.

    Args:
        model: the same weights on every rank.
        group: whose ranks have other tokens each, such as `Mesh.group("expert")`.

    Returns:
        How many layers were split.

    Raises:
        ParallelError: the model has no experts, or they do not divide; nothing was changed.
    """
    layers = require_experts(model, group.size())
    for layer in layers:
        layer.add_module("experts", ExpertShard(layer.experts, group))
    return len(layers)


def require_experts(model: nn.Module, ranks: int) -> list[MixtureOfExperts]:
    """Check that a model has experts that divide among so many ranks, and find their layers.

    Raises:
        ParallelError: it has none, or they do not divide.
    """
    layers = [m for m in model.modules() if isinstance(m, MixtureOfExperts)]
    if not layers:
        raise ParallelError(
            "the model has no layer with experts to split", "Set `expert: 1`, or choose a model with `moe` layers"
        )
    for count in {layer.router.num_experts for layer in layers}:
        if count % ranks:
            raise ParallelError(
                f"{count} experts of a layer do not divide among {ranks} ranks", "Choose `expert` as a divisor"
            )
    return layers


@torch.no_grad()
def gather_experts(model: nn.Module) -> None:
    """Undo `parallelize_experts`: every rank of the group gets all experts again, under their names of before."""
    for layer in [m for m in model.modules() if isinstance(m, MixtureOfExperts)]:
        shard: nn.Module = layer.experts
        if isinstance(shard, ExpertShard):
            whole = {name: _gathered(p.detach(), shard.group) for name, p in shard.local.named_parameters()}
            layer.add_module("experts", _with_weights(shard.local, whole))


def expert_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Weights of split experts with their names: those that differ from rank to rank of the expert group."""
    for prefix, module in model.named_modules():
        if isinstance(module, ExpertShard):
            yield from module.named_parameters(prefix)


@torch.no_grad()
def sum_gradients(model: nn.Module, tokens: dist.ProcessGroup, replicas: dist.ProcessGroup | None = None) -> None:
    """Add gradients up in place: of split experts over the ranks that hold the same, of all else over all ranks.

    Args:
        model: after its backward pass.
        tokens: all ranks with other tokens of the step, such as `Mesh.group("tokens")`.
        replicas: those among them that hold the caller's experts, such as `Mesh.group("expert_replica")`; None where
            no other rank does.
    """
    split = {id(p) for _, p in expert_parameters(model)}
    for parameter in model.parameters():
        group = replicas if id(parameter) in split else tokens
        if parameter.requires_grad and group is not None:
            if parameter.grad is None:  # a rank without tokens for it still takes part
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad, group=group)


def _with_weights(experts: Experts, weights: dict[str, Tensor]) -> Experts:
    """The same experts in all but their weights; what is frozen stays so."""
    other = copy.copy(experts)
    other._parameters = {
        name: None if old is None else nn.Parameter(weights[name], requires_grad=old.requires_grad)
        for name, old in experts._parameters.items()
    }
    return other


def _gathered(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[X / ranks, ...] of every rank -> [X, ...]."""
    whole = own.new_empty(group.size() * len(own), *own.shape[1:])
    dist.all_gather(list(whole.chunk(group.size())), own.contiguous(), group=group)
    return whole
