"""Quantized weights in model files: which reader a folder needs, and which modules stay on the grids it holds.

Knows no algorithm: `compress` quantizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.models.hub.quantization_bitsandbytes import BitsAndBytesSource
from lmworks.models.hub.quantization_compressed import METHOD, CompressedSource, describe, matches, packed
from lmworks.models.hub.quantization_fp8 import FP8Source
from lmworks.models.hub.quantization_gptq import AWQSource, GPTQSource
from lmworks.models.hub.quantization_source import PARTS, WEIGHT, GridKind, GridParts, GridSource, QuantizedSource
from lmworks.models.hub.rules import PairsToHalves, Rule, Split, Transpose, export_state
from lmworks.models.hub.tensor_source import TensorSource, own_state
from lmworks.models.transformer import Transformer
from lmworks.nn.moe import MixtureOfExperts
from lmworks.nn.quantized import GRID, QuantizedEmbedding, QuantizedLinear, QuantizedMatrix

HEAD = "lm_head"
"""Name of the head, ours and theirs."""
EMBEDDING = "embed_tokens"
METHODS: dict[str, Callable[[TensorSource, Mapping[str, Any]], QuantizedSource]] = {
    METHOD: CompressedSource,
    "gptq": GPTQSource,
    "awq": AWQSource,
    "bitsandbytes": lambda source, config: BitsAndBytesSource(source),
    "fp8": FP8Source,
    "fbgemm_fp8": FP8Source,
}
"""Readers by `quant_method`."""
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Where the tools described a folder before `config.json` did."""


def quantized_source(source: TensorSource, hf: Mapping[str, Any], folder: Path) -> QuantizedSource | None:
    """The reader that a folder's description asks for; None when the model is not quantized.

    Raises:
        ConfigError: quantized in a way that is not supported.
        CheckpointError: described as quantized, but not one tensor is.
    """
    config: Any = hf.get("quantization_config", hf.get("compression_config"))
    if config is None:
        config = next(
            ({"quant_method": m, **_read(folder / f)} for f, m in BESIDE.items() if (folder / f).is_file()), None
        )
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise ConfigError("config.json: quantization_config is not a mapping", "Restore the original config.json")
    method = config.get("quant_method")
    if method is None and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        method = "bitsandbytes"
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(
            f"config.json: this quantization_config is not supported (quant_method {method!r})",
            f"Use a model that is not quantized, or by {', '.join(METHODS)}",
        )
    quantized = METHODS[method](source, config)
    if not quantized.modules:
        raise CheckpointError(
            f"config.json describes weights quantized by {method}, and {source.name} holds none",
            "Restore the weights, or remove the quantization_config if these are not quantized",
        )
    return quantized


def as_stored(rules: Sequence[Rule], source: QuantizedSource) -> tuple[Rule, ...]:
    """The rules as they read from quantized modules, which are [out, in] even where a family keeps [in, out]."""
    stored, modules = source.shapes(), source.modules
    found = []
    for rule in rules:
        rule = rule.as_stored(stored)
        if all(name.removesuffix(WEIGHT) in modules for name in rule.theirs):
            rule = replace(rule, operations=tuple(o for o in rule.operations if not isinstance(o, Transpose)))
        found.append(rule)
    return tuple(found)


def keep_grids(
    model: Transformer, rules: Sequence[Rule], source: GridSource, dtype: torch.dtype, device: torch.device | str
) -> tuple[tuple[Rule, ...], TensorSource]:
    """Put empty quantized modules in place of those whose weights are on grids, and read the grids instead.

    Where the file's matrix is several of ours, each gets its rows; a stack of experts is read as floating point.

    Args:
        model: on the meta device, changed in place.
        rules: as they fit the source.
        source: of the weights.
        dtype: of the activations.
        device: where the weights will go.

    Returns:
        The rules and the source to fill the model from.
    """
    kept: list[str] = []
    found: list[Rule] = []
    stored, state = source.shapes(), own_state(model)
    for rule in (rule.as_stored(stored) for rule in rules):
        fits = all(stored.get(n) == t.shape for n, t in export_state([rule], state).items())
        kind = _common_kind(rule, source) if fits else None  # else plain names and shapes tell what is wrong
        modules = [_module(model, name) for name in rule.ours]
        if kind is None or any(module is None for module in modules) or not by_rows(rule):
            found.append(rule)
            continue
        kept += rule.theirs
        found += by_parts(rule, kind)
        for name, module in zip(rule.ours, modules, strict=True):
            assert module is not None
            model.set_submodule(name.removesuffix(WEIGHT), _empty(module, kind, dtype, device))
            if model.tied and isinstance(module, nn.Embedding):
                assert isinstance(model.lm_head, nn.Linear)
                model.set_submodule(HEAD, _empty(model.lm_head, kind, dtype, device))
    model.tie_weights()
    return tuple(found), GridParts(source, kept) if kept else source


def by_parts(rule: Rule, kind: GridKind) -> list[Rule]:
    """Rules for values, scales and zeros like a rule for weights, all of which it arranges by rows."""
    operations = tuple(o for o in rule.operations if not isinstance(o, Transpose))
    return [
        Rule(tuple(f"{n}{part}" for n in rule.ours), tuple(f"{n}{part}" for n in rule.theirs), operations)
        for part in (PARTS if kind.zero else PARTS[:-1])
    ]


def linear_names(model: Transformer, rules: Sequence[Rule]) -> dict[str, str]:
    """Linear maps that can be stored on a grid: our module name to theirs, which several of ours may share.

    Raises:
        ConfigError: the family stores a linear map transposed, which readers do not quantize, or has experts.
    """
    if any(isinstance(module, MixtureOfExperts) for module in model.modules()):
        raise ConfigError(
            f"models of the family {model.config.family!r} cannot be stored in int8: their experts are stacked here",
            "Quantize a dense model",
        )
    stored = {name: rule for rule in rules for name in rule.ours}
    names: dict[str, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | QuantizedLinear) or (name == HEAD and model.tied):
            continue
        rule = stored.get(f"{name}{WEIGHT}")
        if rule is None or len(rule.theirs) > 1 or not by_rows(rule) or _transposed(rule):
            raise ConfigError(
                f"models of the family {model.config.family!r} cannot be stored in int8: their {name!r} is not a "
                "plain Linear on disk",
                "Quantize a model of a family that stores linear maps as such, such as llama, qwen3 or phi3",
            )
        names[name] = rule.theirs[0].removesuffix(WEIGHT)
    return names


def ignored(theirs: str, ignore: Sequence[str]) -> bool:
    """Whether a module name of theirs is left alone: equal to an entry, or matched by a `re:` pattern."""
    return any(matches(theirs, entry) for entry in ignore)


def plain_names(model: Transformer, names: Iterable[str]) -> list[str]:
    """The names that the model would have without grids."""
    grids = {f"{n}.{part}" for n, m in model.named_modules() if isinstance(m, QuantizedMatrix) for part in GRID[1:]}
    return [name for name in names if name not in grids]


def export_quantized(
    model: Transformer, rules: Sequence[Rule], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Their tensors and the `quantization_config` of a model with quantized linear maps.

    Args:
        model: where the modules are.
        rules: expanded for the plain model.
        state: ours.

    Raises:
        ConfigError: the family's format or compressed-tensors cannot express it.
    """
    modules = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedMatrix)}
    if any(isinstance(m, QuantizedEmbedding) for m in modules.values()):
        raise ConfigError("compressed-tensors stores no quantized embedding", "Load it with keep_quantized=False")
    names = linear_names(model, rules)
    kinds: dict[str, GridKind] = {}
    exported: dict[str, Tensor] = {}
    for rule in rules:
        found = [modules.get(name.removesuffix(WEIGHT)) for name in rule.ours]
        if not any(found):
            exported |= export_state([rule], state)
            continue
        grids = [m.quantized_weight() for m in found if m is not None]
        of = {GridKind.of(grid) for grid in grids}
        if len(grids) < len(found) or len(of) > 1:
            raise ConfigError(
                f"{rule.theirs[0]} is one matrix on disk, and {', '.join(rule.ours)} in it are quantized differently",
                "Quantize all of them alike, or none",
            )
        (kind,) = of
        tensors = {f"{n}{part}": t for n, g in zip(rule.ours, grids, strict=True) for part, t in _parts(g)}
        fused = export_state(by_parts(rule, kind), tensors)
        theirs = rule.theirs[0]
        kinds[theirs.removesuffix(WEIGHT)] = kind
        values, scale, zero = (fused.get(f"{theirs}{part}") for part in PARTS)
        assert values is not None
        assert scale is not None
        grid = replace(grids[0], values=values, scale=scale, zero=zero)
        exported |= packed(theirs.removesuffix(WEIGHT), grid)
    ignore = {theirs for theirs in names.values() if theirs not in kinds}
    return exported, describe(kinds, sorted(ignore | ({HEAD} if HEAD not in kinds else set())))


def _parts(grid: Any) -> list[tuple[str, Tensor]]:
    return [(p, t) for p, t in zip(PARTS, (grid.values, grid.scale, grid.zero), strict=True) if t is not None]


def _common_kind(rule: Rule, source: GridSource) -> GridKind | None:
    if not all(name.endswith(WEIGHT) for name in (*rule.ours, *rule.theirs)) or not rule.theirs:
        return None
    kinds = {source.kind(name) for name in rule.theirs}
    return kinds.pop() if len(kinds) == 1 else None


def by_rows(rule: Rule) -> bool:
    """Whether the operations only move rows, so that scales move alike; a transposition is the reader's business."""
    allowed = (o for o in rule.operations if not isinstance(o, Transpose))
    return all(isinstance(o, PairsToHalves) or (isinstance(o, Split) and o.dim == 0) for o in allowed)


def _transposed(rule: Rule) -> bool:
    return sum(isinstance(o, Transpose) for o in rule.operations) % 2 == 1


def _module(model: Transformer, weight: str) -> nn.Linear | nn.Embedding | None:
    """The module of a weight, where it is one that can be quantized."""
    owner = weight.removesuffix(WEIGHT)
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        return None
    if isinstance(module, nn.Embedding) and owner != EMBEDDING:  # of positions or segments: added, not looked up here
        return None
    return module if isinstance(module, nn.Linear | nn.Embedding) else None


def _empty(
    module: nn.Linear | nn.Embedding, kind: GridKind, dtype: torch.dtype, device: torch.device | str
) -> QuantizedMatrix:
    grid: dict[str, Any] = {"bits": kind.bits, "group_size": kind.group_size, "zero": kind.zero}
    with module.weight.device:
        if isinstance(module, nn.Linear):
            return QuantizedLinear(module.in_features, module.out_features, bias=module.bias is not None, **grid)
        made = QuantizedEmbedding(module.num_embeddings, module.embedding_dim, **grid)
    made._given = torch.empty(0, dtype=dtype, device=device)  # not in any file
    return made


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}", "Restore the file") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds a {type(found).__name__}, not an object", "Restore the file")
    return found
