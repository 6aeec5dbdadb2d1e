"""Put a file's tensors into a model: compare names and shapes first, read and convert afterwards.

Knows no file format: a source is anything that lists, describes and reads tensors by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lmworks.core.errors import CheckpointError
from lmworks.models.config import ModelConfig
from lmworks.models.hub.rules import Rule, Shape, export_state, without_prefix
from lmworks.models.transformer import Transformer
from lmworks.nn.quantized import GRID, QuantizedMatrix

TIED = ("lm_head.weight", "embed_tokens.weight")
"""Our names of alias and owner when `tie_word_embeddings` is set."""
MAX_NAMES = 8
"""How many names an error lists of each kind."""


class TensorSource(Protocol):
    """An open weight file or set of shards."""

    name: str
    """What to call it in errors."""

    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor's shape by name, without reading any."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, in memory of its own."""
        ...


class Deduplicated:
    """A source in which an alias stands for its owner where only the alias was stored."""

    def __init__(self, source: TensorSource, aliases: Mapping[str, str]) -> None:
        self.name, self._source = source.name, source
        stored = source.shapes()
        self._stored_as = {owner: alias for alias, owner in aliases.items() if alias in stored and owner not in stored}

    def shapes(self) -> Mapping[str, Shape]:
        """See `TensorSource`."""
        shown = dict(self._source.shapes())
        for owner, alias in self._stored_as.items():
            shown[owner] = shown.pop(alias)
        return shown

    def tensor(self, name: str) -> Tensor:
        """See `TensorSource`."""
        return self._source.tensor(self._stored_as.get(name, name))


class Respelled:
    """A source whose names are written in old spellings: regular expressions to what replaces them."""

    def __init__(self, source: TensorSource, spellings: Mapping[str, str]) -> None:
        self.name, self._source = source.name, source
        self._stored_as = {name: name for name in source.shapes()}
        for pattern, new in spellings.items():
            self._stored_as = {re.sub(pattern, new, name): stored for name, stored in self._stored_as.items()}

    def shapes(self) -> Mapping[str, Shape]:
        """See `TensorSource`."""
        shapes = self._source.shapes()
        return {name: shapes[stored] for name, stored in self._stored_as.items()}

    def tensor(self, name: str) -> Tensor:
        """See `TensorSource`."""
        return self._source.tensor(self._stored_as[name])


@dataclass(frozen=True)
class LoadReport:
    """How a file's tensors differ from what the configuration asks for. Names are the file's."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, Shape, Shape], ...] = ()
    """Name, shape in the file, shape by the configuration."""
    tied: tuple[str, ...] = ()
    """Stored although they repeat another."""

    def raise_for_problems(self, name: str) -> None:
        """Raise unless everything fits.

        Raises:
            CheckpointError: listing what is missing, unexpected and misshapen.
        """
        parts = [
            f"{kind}: {_listed(names)}"
            for kind, names in (("missing", self.missing), ("unexpected", self.unexpected))
            if names
        ]
        if self.mismatched:
            shown = [f"{n} is {list(found)}, not {list(wanted)}" for n, found, wanted in self.mismatched]
            parts.append(f"wrong shape: {_listed(shown)}")
        if parts:
            hint = (
                " (the configuration unties the head: is tie_word_embeddings right?)" if TIED[0] in self.missing else ""
            )
            raise CheckpointError(
                f"the weights in {name} do not fit their configuration; {'; '.join(parts)}{hint}",
                "Restore the config.json and weights that belong together",
            )


def compare(
    source: TensorSource, expected: Mapping[str, Shape], *, aliases: Mapping[str, str], ignored: Sequence[str] = ()
) -> LoadReport:
    """Compare a source's names and shapes with the expected ones; `aliases` may be stored beside their owners."""
    stored = source.shapes().items()
    found = {n: s for n, s in stored if n in expected or not any(re.fullmatch(p, n) for p in ignored)}
    tied = tuple(sorted(set(aliases) & set(found)))
    return LoadReport(
        missing=tuple(sorted(set(expected) - set(found))),
        unexpected=tuple(sorted(set(found) - set(expected) - set(tied))),
        mismatched=tuple(
            (n, tuple(found[n]), tuple(s)) for n, s in expected.items() if n in found and tuple(found[n]) != tuple(s)
        ),
        tied=tied,
    )


def own_state(model: Transformer) -> dict[str, Tensor]:
    """The model's tensors without the alias of a tied head."""
    head = TIED[0] if model.tied else ()
    return {n: t for n, t in model.state_dict().items() if not head or not n.startswith(head)}


def check_depth(config: ModelConfig, rules: Sequence[Rule], source: TensorSource, prefix: str) -> None:
    """Refuse a configuration with more layers than the file has, before anything is built by it.

    Args:
        config: of the model.
        rules: with `{i}` for the layer.
        source: the file.
        prefix: of the names in `rules`, which the file may lack.

    Raises:
        CheckpointError: with both numbers.
    """
    stored = {name.removeprefix(prefix) for name in source.shapes()}
    for kind, (_, stack) in config.columns.items():
        ours = [rule for rule in rules if rule.ours[0].startswith(f"{kind}.layers.{{i}}.")]
        theirs = [name for rule in ours for one in (rule, *rule.also) for name in one.theirs]
        stems = {re.escape(name.partition("{i}")[0].removeprefix(prefix)) for name in theirs}
        found = {match[1] for n in stored if (match := re.match(rf"(?:{'|'.join(stems)})(\d+)\.", n))}
        announced = stack.num_hidden_groups or stack.num_hidden_layers
        if len(found) < announced:
            absent = next(i for i in range(announced) if str(i) not in found)
            raise CheckpointError(
                f"config.json announces {announced:,} different layers of the {kind}, and {source.name} holds tensors "
                f"of {len(found)}, none of layer {absent}; it holds {_listed(sorted(stored)) or 'nothing'}",
                "Restore the config.json and weights that belong together",
            )


def fill(
    model: Transformer, rules: Sequence[Rule], source: TensorSource, *, dtype: torch.dtype,
    device: torch.device | str, prefix: str = "", ignored: Sequence[str] = (),
    tied: Sequence[str] = (TIED[0],), aliases: Mapping[str, str] | None = None,
) -> LoadReport:  # fmt: skip
    """Give a model built on the meta device its weights.

    Args:
        model: on the meta device.
        rules: expanded for exactly the tensors of `own_state(model)`.
        source: the file.
        dtype: floating-point tensors become this; integers stay.
        device: where they go.
        prefix: of the names in the file, which may also lack it throughout.
        ignored: regular expressions of names, less the prefix, that are no weights.
        tied: names in the file that repeat the embedding where the configuration ties the head to it.
        aliases: further names in the file that repeat another, alias to owner; each may stand for the other.

    Raises:
        CheckpointError: names or shapes do not fit, or memory would not suffice; nothing has been read then.
    """
    if not any(n.startswith(prefix) for n in source.shapes()):
        rules = without_prefix(rules, prefix)
        aliases = {a.removeprefix(prefix): o.removeprefix(prefix) for a, o in (aliases or {}).items()}
    state = own_state(model)
    repeated = dict(aliases or {})
    if model.tied:
        owner = next(rule.theirs[0] for rule in rules if rule.ours == (TIED[1],))
        repeated |= dict.fromkeys(tied, owner)
    source = Deduplicated(source, repeated)
    stored = source.shapes()
    rules = [rule.as_stored(stored) for rule in rules]
    expected = {n: tuple(t.shape) for n, t in export_state(rules, state).items()}
    patterns = [f"({re.escape(prefix)})?{p}" for p in ignored]
    report = compare(source, expected, aliases=repeated, ignored=patterns)
    report.raise_for_problems(source.name)
    check_memory(state, dtype, device, source.name)
    for alias in report.tied:
        if not torch.equal(source.tensor(alias), source.tensor(repeated[alias])):
            why, remedy = "config.json ties the two", 'Set "tie_word_embeddings": false in config.json'
            if alias not in tied:
                why, remedy = "this family has one matrix for both", "Use a model whose stacks share their embedding"
            raise CheckpointError(
                f"{source.name} holds a {alias} that differs from {repeated[alias]}, but {why}", remedy
            )
    loaded: dict[str, Tensor] = {}
    grids = {f"{n}.{part}" for n, m in model.named_modules() if isinstance(m, QuantizedMatrix) for part in GRID}
    for rule in rules:
        shapes = [tuple(state[n].shape) for n in rule.ours]
        for name, tensor in rule.load([source.tensor(n) for n in rule.theirs], shapes).items():
            if tensor.is_floating_point() != state[name].is_floating_point():
                kind = str(tensor.dtype).removeprefix("torch.")
                raise CheckpointError(
                    f"{source.name} holds {_listed(rule.theirs)} as {kind}, which is no type of such weights",
                    "Get the original files, or a quantization that is supported",
                )
            own = not tensor.is_floating_point() or name in grids  # a scale rounded once more would move its weights
            target = tensor.dtype if own else dtype
            loaded[name] = tensor.to(device=device, dtype=target, memory_format=torch.contiguous_format)
    if model.tied:
        owner, alias = (name.removesuffix("weight") for name in reversed(TIED))
        loaded |= {alias + n.removeprefix(owner): t for n, t in loaded.items() if n.startswith(owner)}
    model.load_state_dict(loaded, strict=True, assign=True)
    model.tie_weights()
    return report


def check_memory(state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str, name: str) -> None:
    """Refuse to begin loading what will not fit.

    Raises:
        CheckpointError: with the bytes needed and available.
    """
    needed = sum(t.numel() * (dtype.itemsize if t.is_floating_point() else t.element_size()) for t in state.values())
    available = available_memory(device)
    if available is not None and needed > available:
        kind = str(dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{name} needs {needed / 2**30:.1f} GiB as {kind}, and {available / 2**30:.1f} GiB are free on {device}",
            "Free memory, choose a narrower dtype, or use a smaller or quantized model",
        )


def available_memory(device: torch.device | str) -> int | None:
    """Free bytes on a device; None where the system does not say."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        names = ("SC_AVPHYS_PAGES", "SC_PAGE_SIZE")
        return os.sysconf(names[0]) * os.sysconf(names[1]) if set(names) <= set(os.sysconf_names) else None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
