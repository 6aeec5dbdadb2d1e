"""The emit side of telemetry: packages emit named events, whoever runs them subscribes. Knows no exporter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened, with its figures. Durations are in seconds."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


Subscriber = Callable[[Event], None]
_subscribers: list[Subscriber] = []


def emit(name: str, **fields: Any) -> None:
    """Tell every subscriber; costs nothing when there is none."""
    if _subscribers:
        event = Event(name, fields)
        for subscriber in tuple(_subscribers):
            subscriber(event)


@contextmanager
def subscribed(subscriber: Subscriber) -> Iterator[None]:
    """Receive events while the block runs."""
    _subscribers.append(subscriber)
    try:
        yield
    finally:
        _subscribers.remove(subscriber)
