"""What may be asked of a running engine besides generation, by name: `AsyncLLM.call(name, **arguments)`.

A row is a function whose first argument is the engine; the others, and what it returns, are plain values, because it
may run in another process: numbers, texts, bytes, lists and mappings of them. It runs between two steps and alone
touches the engine. The server offers a route only for what has a row here. Knows no model and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.core.registry import resolve
from lmworks.engine.process.exchange import Kind

OPERATIONS: Mapping[Kind, Mapping[str, str]] = {
    "generate": {
        "load_adapter": "lmworks.engine.weights.adapters:load_adapter",
        "unload_adapter": "lmworks.engine.weights.adapters:unload_adapter",
        "update_weights": "lmworks.engine.weights.update:update_from_folder",
        "load_weights": "lmworks.engine.weights.versions:load",
        "activate_weights": "lmworks.engine.weights.versions:activate",
        "rollback_weights": "lmworks.engine.weights.versions:rollback",
        "sleep": "lmworks.engine.weights.sleep:sleep",
        "wake_up": "lmworks.engine.weights.sleep:wake_up",
        "is_sleeping": "lmworks.engine.weights.sleep:is_sleeping",
    },
    "embed": {
        "embed": "lmworks.engine.pooling.embedding_engine:embed",
        "score": "lmworks.engine.pooling.embedding_engine:score",
    },
}
"""Kind of model to the name and the function of what it can do."""


def names(kind: Kind) -> tuple[str, ...]:
    """What a model of that kind can do."""
    return tuple(OPERATIONS[kind])


def carry_out(engine: Any, kind: Kind, name: str, arguments: Mapping[str, Any]) -> Any:
    """Call an operation that `names` lists; it raises what it raises."""
    return resolve(OPERATIONS[kind][name])(engine, **arguments)
