"""How large gradients, updates and weights are, layer by layer. Knows no optimizer.

An update of about a thousandth of the weights is usual; a layer far from the others is where to look first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lmworks.optim.clipping import GradientNorms, norms_by_layer
from lmworks.optim.param_groups import trainable

Norms = dict[str, dict[str, float]]
"""`"gradient"`, `"update"` and `"weight"` by layer."""


class LayerNorms:
    """Measures one update: made before the optimizer's step, read after it.

    Args:
        model: its trainable parameters are measured; a copy of them is kept meanwhile.
        gradients: of this step, before clipping.
    """

    def __init__(self, model: nn.Module, gradients: GradientNorms) -> None:
        self._model, self._gradients = model, gradients.by_layer()
        self._before = {name: parameter.detach().clone() for name, parameter in trainable(model)}

    def measure(self) -> Norms:
        """Euclidean norms of each layer's gradient, update and weights."""
        now = {name: parameter.detach() for name, parameter in trainable(self._model)}
        updates = _by_layer({name: now[name] - before for name, before in self._before.items()})
        return {
            layer: {"gradient": self._gradients.get(layer, 0.0), "update": updates[layer], "weight": norm}
            for layer, norm in _by_layer(now).items()
        }


def _by_layer(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    norms = torch.stack(torch._foreach_norm(list(tensors.values()))).tolist()
    return norms_by_layer(dict(zip(tensors, norms, strict=True)))
