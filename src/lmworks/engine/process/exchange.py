"""What passes between those who ask and the loop that owns an engine: commands one way, reports the other.

Plain values, so that the two may live in one process or in two. Knows no transport and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lmworks.core.errors import LMWorksError
from lmworks.core.telemetry import Event
from lmworks.engine.outputs import Delta
from lmworks.engine.request import Request
from lmworks.engine.stats import EngineStats

Kind = Literal["generate", "embed"]
"""What a model is for: to continue texts, or to turn them into vectors."""


@dataclass(frozen=True)
class Load:
    """The first command to a process: which engine to open."""

    path: str
    config: dict[str, Any]
    """Of `EngineConfig`."""
    kind: Kind | None = None
    """None takes what the model is."""
    weights: tuple[str, str] = ("", "")
    """Folder and version of the weights to serve, where they are not those of `path`: what the process before this one
    served when it died."""
    adapters: dict[str, str] = field(default_factory=dict)
    """Likewise: folder by name."""


@dataclass(frozen=True)
class Abort:
    """End a request; its completions end with the reason `abort`."""

    request_id: str


@dataclass(frozen=True)
class Call:
    """Carry out one of `operations.OPERATIONS` between two steps."""

    number: int
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Ping:
    """Answered by a `Pong` between two steps: the proof that the loop goes round."""


@dataclass(frozen=True)
class Stop:
    """Leave the loop."""


Command = Request | Abort | Call | Ping | Stop


@dataclass(frozen=True)
class ModelInfo:
    """What is served; the first report of an engine that is ready."""

    kind: Kind
    max_model_len: int
    """Prompt plus completion at most; what a text may have where nothing is generated."""
    vocab_size: int
    has_encoder: bool = False
    """Whether a request's prompt is the encoder's source."""
    block_size: int = 0
    num_kv_blocks: int = 0
    operations: tuple[str, ...] = ()
    """What `AsyncLLM.call` may ask for."""
    is_cross_encoder: bool = False
    """Whether it reads both texts of a pair at once."""
    max_loras: int = 0
    """Adapters that may be loaded at a time."""


@dataclass(frozen=True)
class Refused:
    """A request that the engine did not take on."""

    request_id: str
    error: LMWorksError


@dataclass(frozen=True)
class Result:
    """The answer to a `Call`."""

    number: int
    value: Any = None
    error: LMWorksError | None = None


@dataclass(frozen=True)
class Pong:
    """The loop goes round."""


@dataclass(frozen=True)
class Failed:
    """The engine cannot be opened or go on; nothing follows."""

    error: LMWorksError
    at_load: bool = field(default=False)
    """It never was ready, and with the same model it never will be."""


Report = Delta | Refused | Result | EngineStats | Event | ModelInfo | Pong | Failed
