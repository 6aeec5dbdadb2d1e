"""Which optimizer and which weight decay a parameter gets, by the role it plays.

Roles are read from the kind of module that holds a parameter and from its shape, so any model of
torch modules is served. Knows no model class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn

Role = Literal["matrix", "embedding", "head", "vector"]
"""`matrix`: a hidden layer's 2-D weight; `embedding`: a lookup table, also when the head is tied to it;
`head`: an untied output layer; `vector`: norms, biases, and whatever else is not 2-D."""

HEADS = ("lm_head", "score", "classifier")
"""Last module name of an output layer, as Hugging Face names them."""


def parameter_roles(model: nn.Module) -> dict[str, Role]:
    """The role of every trainable parameter by its name; a shared parameter is listed once."""
    roles: dict[str, Role] = {}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in trainable(model):
        if id(parameter) in tables:
            roles[name] = "embedding"
        elif parameter.ndim != 2:
            roles[name] = "vector"
        elif name.split(".")[-2:-1] and name.split(".")[-2] in HEADS:
            roles[name] = "head"
        else:
            roles[name] = "matrix"
    return roles


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """`(name, parameter)` of everything that requires a gradient, each once, in the model's order."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
