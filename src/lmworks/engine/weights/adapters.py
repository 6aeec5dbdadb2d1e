"""The adapters that an engine has loaded, by name, and what they add to a step in which others run without one.

Requests keep the adapter that they began with: one that is replaced or unloaded meanwhile goes when the last of them
has ended, and only new requests notice. Knows no layout of files.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lmworks.core.errors import ModelNotFoundError, RequestError
from lmworks.engine.config import EngineConfig
from lmworks.engine.weights.adapter_folder import read_updates
from lmworks.kernels.low_rank import LowRank, low_rank_update
from lmworks.kernels.program import UpdateSet

if TYPE_CHECKING:
    from lmworks.engine.llm_engine import LLMEngine
    from lmworks.engine.scheduling import sequence as seq
    from lmworks.engine.scheduling.scheduler import Chunk
    from lmworks.models.transformer import Transformer

READ_SOURCES = ("cross_attn.k_proj", "cross_attn.v_proj")
"""What of a decoder reads the encoder's output instead of the decoder's tokens."""


class Adapter:
    """One loaded adapter.

    Args:
        name: that requests give.
        path: it was read from.
        number: of no other one, also after it was loaded anew.
        updates: of linear maps by name.
    """

    def __init__(self, name: str, path: str, number: int, updates: Mapping[str, LowRank]) -> None:
        self.name, self.path, self.number, self.updates = name, path, number, updates
        self._sites: Sequence[str] = ()
        self._set = UpdateSet(())

    def by_site(self, sites: Sequence[str]) -> UpdateSet:
        """The updates as a program with these sites takes them."""
        if sites is not self._sites:
            assert self.updates.keys() <= set(sites), "a program has all of the model's linear maps"
            self._sites, self._set = sites, UpdateSet([self.updates.get(name) for name in sites])
        return self._set


class Adapters:
    """All adapters of one engine.

    Args:
        config: how many, and of what rank.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config, self._numbers = config, 0
        self._loaded: dict[str, Adapter] = {}

    @property
    def paths(self) -> dict[str, str]:
        """Folder by name, in the order of loading."""
        return {adapter.name: adapter.path for adapter in self._loaded.values()}

    def named(self, name: str) -> Adapter:
        """The adapter of a name.

        Raises:
            ModelNotFoundError: there is none.
        """
        if name not in self._loaded:
            known = ", ".join(self._loaded) or "none"
            raise ModelNotFoundError(f"no adapter {name!r} is loaded", f"Load it, or use one of: {known}")
        return self._loaded[name]

    def load(self, model: Transformer, name: str, path: str, *, replace: bool = True) -> None:
        """Read an adapter folder of PEFT, so that requests may name it.

        Args:
            model: that is served.
            name: for `Request.adapter`.
            path: LoRA of linear maps, in safetensors.
            replace: one of that name.

        Raises:
            RequestError: the name is taken, or `max_loras` are loaded.
            CheckpointError: the folder cannot be read, is no plain LoRA, or does not fit the model.
        """
        if name in self._loaded and not replace:
            raise RequestError(f"an adapter {name!r} is loaded", "Unload it, or say that it shall be replaced")
        if name not in self._loaded and len(self._loaded) >= self._config.max_loras:
            raise RequestError(
                f"{len(self._loaded)} adapters are loaded ({', '.join(self._loaded)}), and max_loras is "
                f"{self._config.max_loras}",
                "Unload one, or raise max_loras",
            )
        updates = read_updates(path, model, self._config.max_lora_rank)
        self._numbers += 1
        self._loaded[name] = Adapter(name, path, self._numbers, updates)

    def unload(self, name: str) -> None:
        """Forget an adapter; errors as in `named`."""
        del self._loaded[self.named(name).name]


def names_of(sequences: Iterable[seq.Sequence]) -> tuple[str, ...]:
    """The adapters that sequences have, by name and once each."""
    return tuple(sorted({s.adapter.name for s in sequences if s.adapter is not None}))


@dataclass(frozen=True)
class RowAdapters:
    """Which adapter each row of a step has."""

    adapters: Sequence[Adapter]
    chosen: array[int]
    """[N] int32 place in `adapters`, -1 for none."""

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> RowAdapters | None:
        """Of the tokens of all chunks; None where no sequence has one, as in most steps."""
        return cls._of([(chunk.sequence.adapter, chunk.length) for chunk in chunks])

    @classmethod
    def of_sources(cls, chunks: Sequence[Chunk]) -> RowAdapters | None:
        """Of the tokens that the encoder reads."""
        return cls._of([(c.sequence.adapter, len(c.sequence.source_token_ids)) for c in chunks if c.encodes])

    def at(self, rows: Sequence[int]) -> RowAdapters:
        """Of these rows alone."""
        return RowAdapters(self.adapters, array("i", [self.chosen[row] for row in rows]))

    @classmethod
    def _of(cls, runs: Sequence[tuple[Adapter | None, int]]) -> RowAdapters | None:
        if all(adapter is None for adapter, _ in runs):
            return None
        places: dict[Adapter, int] = {}
        chosen = array("i")
        for adapter, length in runs:
            place = -1 if adapter is None else places.setdefault(adapter, len(places))
            chosen.extend([place] * length)
        return cls(list(places), chosen)


@contextmanager
def added(model: nn.Module, rows: RowAdapters | None, sources: RowAdapters | None = None) -> Iterator[None]:
    """While this lasts, a model's linear maps give what the adapters of their rows make of it.

    Args:
        model: run in one thread.
        rows: of the tokens that it is given; None where none has any.
        sources: of what a decoder behind an encoder reads in addition.
    """
    if rows is None:
        yield
        return
    device = next(model.parameters()).device
    handles = []
    for name in {name for part in (rows, sources) if part is not None for a in part.adapters for name in a.updates}:
        part = sources if sources is not None and name.endswith(READ_SOURCES) else rows
        updates = [adapter.updates.get(name) for adapter in part.adapters]
        chosen = torch.tensor(part.chosen, dtype=torch.int32, device=device)
        handles.append(model.get_submodule(name).register_forward_hook(partial(_add, updates, chosen)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(
    updates: Sequence[LowRank | None], chosen: Tensor, _: nn.Module, inputs: tuple[Tensor], output: Tensor
) -> Tensor:
    (x,) = inputs
    assert len(x) == len(chosen), "every row of the step passes at once"
    return low_rank_update(x, output, updates, chosen)


def load_adapter(engine: LLMEngine, name: str, path: str, replace: bool = False) -> None:
    """The operation `load_adapter`; see `Adapters.load`."""
    engine.check_awake()
    engine.adapters.load(engine.model, name, path, replace=replace)


def unload_adapter(engine: LLMEngine, name: str) -> None:
    """The operation `unload_adapter`; see `Adapters.unload`."""
    engine.adapters.unload(name)
