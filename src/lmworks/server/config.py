"""What a server can be told. Knows no web framework, so that reading a recipe stays cheap."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from lmworks.core.config import Config
from lmworks.engine.config import EngineConfig


class AppConfig(Config):
    """Settings of the HTTP application, whatever models stand behind it."""

    journal: Path | None = None
    """JSON-lines file that remembers which model gave which response; without it only the latest are traceable."""
    api_key: Annotated[str | None, Field(min_length=1, repr=False, exclude=True)] = None
    """When set, every `/v1` request must carry it as a bearer token; it is never written into an artifact."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """Largest request body."""
    cors_origins: tuple[str, ...] = ()
    """Web origins, such as `https://example.org`, whose pages may call this server; `*` admits all."""


class ServeConfig(AppConfig):
    """Models, address and engine of one server."""

    models: Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.:-]*$")], Path], Field(min_length=1)]
    """Name to model folder (or `.gguf` file)."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine alone."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0
    """How long a stopping server lets running requests finish."""
    engine: EngineConfig = EngineConfig()
    """Settings of each model's engine."""
