"""Which optimizer and which weight decay a parameter gets, by the role it plays.

Roles are read from the kind of module that holds a parameter, from its shape and from the names that Hugging
Face uses, so any model of torch modules is served. Knows no model class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn

Role = Literal["matrix", "experts", "embedding", "head", "vector"]
"""`matrix`: a hidden layer's 2-D weight; `experts`: such weights of all experts in one 3-D parameter;
`embedding`: a lookup table, also when the head is tied to it; `head`: an untied output layer;
`vector`: norms, biases (of experts too), and whatever else."""

HEADS = ("lm_head", "score", "classifier")
"""Last module name of an output layer, as Hugging Face names them."""
DECAYED: frozenset[Role] = frozenset({"matrix", "experts", "head"})
"""Roles that weight decay applies to."""


def parameter_roles(model: nn.Module) -> dict[str, Role]:
    """The role of every trainable parameter by its name; a shared parameter is listed once."""
    tables = _lookup_tables(model)
    return {name: _role(name, parameter, id(parameter) in tables) for name, parameter in trainable(model)}


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """`(name, parameter)` of everything that requires a gradient, each once, in the model's order."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def has_tied_head(model: nn.Module) -> bool:
    """Whether an output layer and a lookup table are one parameter."""
    tables = _lookup_tables(model)
    named = model.named_parameters(remove_duplicate=False)
    return any(id(parameter) in tables and _in_head(name) for name, parameter in named)


def _lookup_tables(model: nn.Module) -> set[int]:
    """Identities of their weights; a table that is divided among ranks has other code, and names its size alike."""
    return {id(m.weight) for m in model.modules() if hasattr(m, "num_embeddings")}


def _role(name: str, parameter: nn.Parameter, table: bool) -> Role:
    if table:
        return "embedding"
    if name.endswith("bias"):
        return "vector"
    if parameter.ndim == 3 and "experts" in name.split("."):
        return "experts"
    if parameter.ndim != 2:
        return "vector"
    return "head" if _in_head(name) else "matrix"


def _in_head(name: str) -> bool:
    return name.split(".")[-2:-1] != [] and name.split(".")[-2] in HEADS
