"""LoRA adapters as PEFT saves them, read for a served model: its own names, fused matrices taken apart.

Knows the adapter's folder and the model's shape; no request, and no step.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from lmworks.adapters import read_adapter
from lmworks.adapters.peft_folder import PREFIX, some
from lmworks.core.errors import CheckpointError
from lmworks.engine.execution.packed_linear import READ_BY_OTHERS, PackedLinear
from lmworks.kernels.low_rank import LowRank
from lmworks.models.build import build_model
from lmworks.models.families import family_named
from lmworks.models.hub.quantization import by_rows
from lmworks.models.hub.rules import Rule, Transpose, rename
from lmworks.models.hub.tensor_source import own_state
from lmworks.models.transformer import Transformer
from lmworks.nn.quantized import QuantizedLinear

A, B, WEIGHT, HEAD = ".lora_A.weight", ".lora_B.weight", ".weight", "lm_head.weight"
UPDATED = (nn.Linear, QuantizedLinear, PackedLinear)


def read_updates(folder: Path | str, model: Transformer, max_rank: int) -> dict[str, LowRank]:
    """Read an adapter.

    Args:
        folder: as PEFT saves it: LoRA of linear maps, without trained biases, embeddings or whole modules.
        model: that is served, whatever form its linear maps have taken.
        max_rank: to accept.

    Returns:
        The update of each linear map by its name in `model`.

    Raises:
        CheckpointError: the folder cannot be read, is no plain LoRA, has a higher rank, or does not fit the model.
    """
    config, tensors = read_adapter(folder)
    if config.r > max_rank:
        raise CheckpointError(
            f"the adapter {folder} has rank {config.r}, and max_lora_rank is {max_rank}", "Raise max_lora_rank"
        )
    rules, shapes = _rules(model)
    modules = {name: module for name, module in model.named_modules() if isinstance(module, UPDATED)}
    updates: dict[str, LowRank] = {}
    faults: list[str] = []
    for key in sorted(key for key in tensors if key.endswith(A)):
        place = key.removesuffix(A)
        theirs = place.removeprefix(PREFIX)
        down, up = tensors[key], tensors[f"{place}{B}"]
        rule = rules.get(theirs)
        if rule is None:
            faults.append(f"no linear map {theirs} in the model")
            continue
        inputs, outputs = shapes[rule.ours[0]][1], sum(shapes[name][0] for name in rule.ours)
        if down.shape != (config.r, inputs) or up.shape != (outputs, config.r):
            faults.append(
                f"{theirs} has shapes {tuple(down.shape)} and {tuple(up.shape)}, the model needs "
                f"{(config.r, inputs)} and {(outputs, config.r)}"
            )
            continue
        for weight, part in rule.load([up], [(shapes[name][0], config.r) for name in rule.ours]).items():
            name = weight.removesuffix(WEIGHT)
            if name not in modules or name.rpartition(".")[2] in READ_BY_OTHERS:
                faults.append(f"{theirs} is read otherwise than as a linear map, and cannot be adapted while serving")
                continue
            updates[name] = _update(down, part, config.scaling, model.dtype)
    if faults:
        raise CheckpointError(f"the adapter {folder} does not fit: {some(faults)}", "Use the model it was trained on")
    return updates


def _update(down: Tensor, up: Tensor, scale: float, served: torch.dtype) -> LowRank:
    """In the type of the model, or the adapter's own where that is narrower: they are read by every step."""
    narrow = served == torch.bfloat16 or down.dtype == up.dtype == torch.bfloat16
    dtype = torch.bfloat16 if narrow else torch.float32
    return LowRank(down.to(dtype).contiguous(), up.to(dtype).T.contiguous(), scale)


def _rules(model: Transformer) -> tuple[dict[str, Rule], dict[str, tuple[int, ...]]]:
    """Their name of each matrix to how its outputs are ours, and the shapes of our plain tensors."""
    with torch.device("meta"):
        plain = build_model(model.config)
    family = family_named(model.config.family)
    rules = list(family.rules(model.config, own_state(plain)))
    if plain.tied:  # an update of the head is not one of the embedding
        rules += [rename(HEAD, name) for name in family.tied if name.endswith(WEIGHT)]
    found: dict[str, Rule] = {}
    for rule in chain.from_iterable((*rule.also, rule) for rule in rules):
        (theirs, *more), ours = rule.theirs or ("",), rule.ours
        if not more and all(name.endswith(WEIGHT) for name in (theirs, *ours)) and by_rows(rule):
            # PEFT writes A and B alike however the matrix lies on disk.
            kept = tuple(o for o in rule.operations if not isinstance(o, Transpose))
            found[theirs.removesuffix(WEIGHT)] = replace(rule, operations=kept)
    return found, {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
