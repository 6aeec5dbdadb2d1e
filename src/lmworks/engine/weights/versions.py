"""Weights by version: one set serves while another is made ready or kept to go back to.

A set is loaded, rounded and packed in a thread beside the steps; to serve it is then a matter of pointers. Requests
that run go on with the new weights: what they have said stays, its keys and values are computed anew, and no request
is lost. A cached prefix is found by requests of its own version alone, also after going back. Two sets lie in memory
at most: loading a third drops the one that does not serve. Knows no scheduler and no request.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from lmworks.core.errors import CheckpointError, RequestError
from lmworks.engine.execution.cuda_graphs import graph_settings
from lmworks.engine.execution.model_runner import ModelRunner
from lmworks.engine.execution.packed_linear import PackedLinear
from lmworks.engine.stats import FIRST_VERSION
from lmworks.engine.weights.loading import load_weights
from lmworks.models.accounting import parameters
from lmworks.models.hub import read_config
from lmworks.models.hub.tensor_source import available_memory
from lmworks.models.transformer import Transformer

if TYPE_CHECKING:
    from lmworks.engine.llm_engine import LLMEngine


@dataclass(eq=False)
class WeightSet:
    """Weights that serve or could."""

    version: str
    runner: ModelRunner
    path: Path | None
    """Where they can be read again; None where they came from memory."""
    number: int | None = None
    """Under which the prefix cache knows their keys; None until they serve."""


class WeightVersions:
    """The sets of one engine.

    Args:
        runner: of the first one.
        path: it was read from; None where it came from memory.
    """

    def __init__(self, runner: ModelRunner, path: Path | None) -> None:
        self.served = WeightSet(FIRST_VERSION, runner, path, 0)
        self.other: WeightSet | None = None
        """Loaded and never served, or served before."""
        self.loading = False
        self._count = 0

    def fresh_name(self) -> str:
        """A version that nobody else has."""
        taken = {w.version for w in (self.served, self.other) if w is not None}
        self._count = next(n for n in count(self._count + 1) if str(n) not in taken)
        return str(self._count)

    def load(self, engine: LLMEngine, path: Path, version: str | None = None) -> Future[str]:
        """Begin to load a set beside the one that serves.

        Args:
            engine: that will serve it.
            path: a folder with a model of the same shape.
            version: what to call it; None counts.

        Returns:
            Its version once it is there; a `CheckpointError` where it cannot be read, holds another model, or does
            not fit into memory.

        Raises:
            RequestError: weights are being loaded, or these are called like those that serve.
        """
        if self.loading:
            raise RequestError("weights are being loaded", "Wait until they are")
        if version == self.served.version:
            raise RequestError(f"the weights that serve are called {version!r}", "Give the new ones another name")
        name = version or self.fresh_name()
        self.loading, self.other = True, None
        loaded: Future[str] = Future()

        def work() -> None:
            try:
                self.other = _loaded(engine, path, name)
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                self.loading = False
                loaded.set_exception(error)
            else:
                self.loading = False
                loaded.set_result(name)

        threading.Thread(target=work, name="lmworks-weights", daemon=True).start()
        return loaded

    def swap(self, version: str | None) -> WeightSet:
        """Have the other set serve; the one that served is kept.

        Raises:
            RequestError: there is no other, or it is not called that.
        """
        if self.other is None or version not in (None, self.other.version):
            there = "no others are loaded" if self.other is None else f"only {self.other.version!r} is beside them"
            wanted = "" if version is None else f" {version!r}"
            raise RequestError(
                f"there are no weights{wanted} to serve instead of {self.served.version!r}: {there}", "Load them"
            )
        self.served, self.other = self.other, self.served
        return self.served

    def renewed(self, number: int, path: Path | None) -> None:
        """The set that serves has other weights now."""
        self.served.version, self.served.number, self.served.path = self.fresh_name(), number, path


def _loaded(engine: LLMEngine, path: Path, version: str) -> WeightSet:
    """A set that is ready to serve; runs beside the engine's steps."""
    served = engine.model
    config = read_config(path)
    theirs, ours = config.to_dict(), served.config.to_dict()
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        raise CheckpointError(
            f"{path} holds another model than the one that is served: {', '.join(differing)} differ",
            "Load weights of the same model",
        )
    # Read as they are stored, then arranged one matrix after the other.
    needed = parameters(config).total * served.dtype.itemsize + weight_bytes(served)
    available = available_memory(served.device)
    if available is not None and needed > available:
        raise CheckpointError(
            f"another set of weights needs {needed / 2**30:.2f} GiB while it is loaded, and "
            f"{available / 2**30:.2f} GiB are free",
            "Free memory, or update the weights in place",
        )
    model = load_weights(path, engine.config, served.dtype, served.device)
    old = engine.runner
    graphs = graph_settings(engine.config)
    runner = ModelRunner(model, engine.cache, old.method, old.decode_threads, engine.max_model_len, graphs)
    return WeightSet(version, runner, path)


def weight_bytes(model: Transformer) -> int:
    """Of everything in memory, packed matrices included."""
    packed = (module.weight.packed for module in model.modules() if isinstance(module, PackedLinear))
    return sum({t.data_ptr(): t.nbytes for t in (*model.state_dict().values(), *packed)}.values())


def load(engine: LLMEngine, path: str, version: str | None = None) -> Future[str]:
    """The operation `load_weights`: answered when they are loaded, while others are served."""
    engine.check_awake()
    return engine.versions.load(engine, Path(path), version)


def activate(engine: LLMEngine, version: str | None = None) -> str:
    """The operation `activate_weights`: serve loaded weights; the version that serves now."""
    engine.check_awake()
    serve(engine, engine.versions.swap(version))
    return engine.versions.served.version


def rollback(engine: LLMEngine) -> str:
    """The operation `rollback_weights`: serve what served before; the version that serves now."""
    engine.check_awake()
    other = engine.versions.other
    if other is not None and other.number is None:
        raise RequestError(f"the weights {other.version!r} have never served", "Activate them")
    serve(engine, engine.versions.swap(None))
    return engine.versions.served.version


def serve(engine: LLMEngine, weights: WeightSet) -> None:
    """From the next step on; every running request is computed anew."""
    engine.model, engine.runner = weights.runner.model, weights.runner
    if engine.runner.cache is not engine.cache:
        engine.runner.attach(engine.cache)
    weights.number = engine.scheduler.renew_weights(weights.number)
