"""How large gradients, updates and weights are, layer by layer. Knows no optimizer.

An update of about a thousandth of the weights is usual; a layer far from the others is where to look first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from lmworks.optim.clipping import GradientNorms
from lmworks.optim.param_groups import trainable

Norms = dict[str, dict[str, float]]
"""`"gradient"`, `"update"` and `"weight"` by layer."""


class LayerNorms:
    """Measures one update: made before the optimizer's step, read after it.

    Args:
        model: its trainable parameters are measured; a copy of them is kept meanwhile.
        gradients: of this step, before clipping.
        norms_of: measures named tensors, of which other processes may have parts.
    """

    def __init__(
        self, model: nn.Module, gradients: GradientNorms, norms_of: Callable[[Mapping[str, Tensor]], GradientNorms]
    ) -> None:
        self._model, self._gradients, self._norms_of = model, gradients.by_layer(), norms_of
        self._before = {name: parameter.detach().clone() for name, parameter in trainable(model)}

    def measure(self) -> Norms:
        """Euclidean norms of each layer's gradient, update and weights."""
        now = {name: parameter.detach() for name, parameter in trainable(self._model)}
        updates = self._norms_of({name: now[name] - before for name, before in self._before.items()}).by_layer()
        return {
            layer: {"gradient": self._gradients.get(layer, 0.0), "update": updates[layer], "weight": norm}
            for layer, norm in self._norms_of(now).by_layer().items()
        }
