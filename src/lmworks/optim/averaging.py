"""An exponential moving average of the weights, kept by name beside them. Knows no model class and no files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lmworks.core.errors import CheckpointError
from lmworks.optim.param_groups import trainable
from lmworks.optim.shards import divided_as, part


class WeightAverage:
    """Follows a model's trainable weights; smoother than they are, and usually better.

    What it does at a step follows from the step's number, so its state is tensors alone.

    Args:
        model: begins as its average.
        decay: share of the average that stays at each update, in the long run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        assert 0 <= decay < 1, "validated where it is configured"
        self._model, self.decay = model, decay
        self._average = {name: p.detach().clone() for name, p in trainable(model)}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update number `step`, counted from 0.

        Early on the decay is (1 + step) / (10 + step), so that random initial weights are soon forgotten.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [part(parameter.detach()) for _, parameter in trainable(self._model)]
        torch._foreach_lerp_([part(average) for average in self._average.values()], weights, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Parameter name to average; shared, not copied."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what `state_dict` gave, or the same whole.

        Raises:
            CheckpointError: it is of other parameters.
        """
        shapes = {name: tensor.shape for name, tensor in self._average.items()}
        odd = [name for name in sorted(set(state) | set(shapes)) if name not in state or
               state[name].shape != shapes.get(name)]  # fmt: skip
        if odd:
            raise CheckpointError(
                f"the averaged weights and the model differ in {len(odd)} parameters, among them {odd[0]!r}",
                "Resume with the model that the run was started with",
            )
        for name, tensor in self._average.items():
            tensor.copy_(divided_as(state[name], tensor))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While inside, the model holds the average: to evaluate or save it. Afterwards, its own weights again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in trainable(self._model):
            own = parameter.detach().clone()
            parameter.copy_(self._average[name])
            self._average[name].copy_(own)
