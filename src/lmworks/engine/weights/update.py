"""New weights for a served model, all or none. Knows no scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmworks.core.errors import CheckpointError
from lmworks.engine.execution.packed_linear import PackedLinear
from lmworks.models.hub import load_pretrained
from lmworks.models.transformer import Transformer

if TYPE_CHECKING:
    from lmworks.engine.llm_engine import LLMEngine


def update_from_folder(engine: LLMEngine, path: str) -> None:
    """The operation `update_weights`: copy the weights of a model folder of the same shape into the served model.

    Raises:
        CheckpointError: the folder cannot be read, or holds another model. Nothing was changed then.
    """
    engine.update_weights(load_pretrained(Path(path), dtype=engine.dtype).state_dict(), Path(path))


@torch.inference_mode()  # packed weights are made in it, and may be written only in it
def update_weights(model: Transformer, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict into a model, whatever form its linear maps have taken for serving.

    Args:
        model: changed in place.
        state: of the plain model; a tied head may be left out.

    Raises:
        CheckpointError: names or shapes differ. Nothing was changed then.
    """
    places: dict[str, tuple[torch.Size, Callable[[Tensor], object]]] = {
        name: (tensor.shape, tensor.copy_) for name, tensor in model.state_dict().items()
    }
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear) and not module.keeps_grid:
            places[f"{name}.weight"] = module.shape, module.repack
            if module.weight.bias is not None:
                places[f"{name}.bias"] = module.weight.bias.shape, module.weight.bias.copy_
    if model.tied and "embed_tokens.weight" in state:
        state = {**state, "lm_head.weight": state["embed_tokens.weight"]}
    unknown, missing = sorted(state.keys() - places.keys()), sorted(places.keys() - state.keys())
    wrong = [
        f"{name} {tuple(tensor.shape)}, not {tuple(places[name][0])}"
        for name, tensor in state.items()
        if name in places and tensor.shape != places[name][0]
    ]
    if unknown or missing or wrong:
        raise CheckpointError(
            f"the weights do not fit the served model (unknown: {unknown}; missing: {missing}; shapes: {wrong})",
            "Give the state dict of the same model",
        )
    for name, tensor in state.items():
        places[name][1](tensor)
