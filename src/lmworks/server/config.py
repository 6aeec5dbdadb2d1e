"""What a server can be told. Knows no web framework, so that reading a recipe stays cheap."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lmworks.core.config import Config
from lmworks.engine.config import EngineConfig

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.:-]*$")]


class AppConfig(Config):
    """Settings of the HTTP application, whatever models stand behind it."""

    journal: Path | None = None
    """JSON-lines file that remembers which model gave which response; without it only the latest are traceable."""
    api_key: Annotated[str | None, Field(min_length=1, repr=False, exclude=True)] = None
    """When set, every request but probes must carry it as a bearer token; it is never written into an artifact. More of
    them come from the environment's LMWORKS_API_KEY, separated by commas."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """Largest request body."""
    cors_origins: tuple[str, ...] = ()
    """Web origins, such as `https://example.org`, whose pages may call this server; `*` admits all."""
    api_key_file: Path | None = None
    """Further keys, one a line."""
    admin_api_key: Annotated[str | None, Field(min_length=1, repr=False, exclude=True)] = None
    """Opens the routes that change what is served, which do not exist without it; the environment's
    LMWORKS_ADMIN_API_KEY does the same."""
    max_concurrent_requests_per_key: Positive | None = None
    """Requests of one key (without keys: of one address) at a time; one more is answered with 429."""
    max_requests_per_minute_per_key: Positive | None = None
    """Requests of one key in any minute, spread as it likes; one more is answered with 429."""
    otlp_endpoint: str | None = None
    """Where to send traces by OTLP over HTTP, such as `http://127.0.0.1:4318/v1/traces`; needs the extra `otel`."""
    files_folder: Path | None = None
    """Where uploaded files and batches are kept, and found again after a restart; None takes a temporary folder."""


class ModelSettings(Config):
    """One model of several, where its path alone does not say enough."""

    path: Path
    """Its folder, or a `.gguf` file."""
    aliases: tuple[Name, ...] = ()
    """Other names that it answers to."""
    kind: Literal["generate", "embed"] | None = None
    """What it is for; None takes what it is."""
    engine: EngineConfig | None = None
    """Settings of its engine; None takes the server's."""


class ServeConfig(AppConfig):
    """Models, address and engine of one server."""

    models: Annotated[dict[Name, Path | ModelSettings], Field(min_length=1)]
    """Name to model folder (or `.gguf` file), or to `{path, aliases, kind, engine}`."""
    host: str = "127.0.0.1"
    """Address to listen on; the default is reachable from this machine alone."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0
    """How long a stopping server lets running requests finish."""
    engine: EngineConfig = EngineConfig()
    """Settings of each model's engine."""
    max_connections: Positive = 1024
    """Open connections at a time; one more is turned away."""
    max_header_bytes: Positive = 32 * 1024
    """Largest request line and headers together."""
    header_timeout: Seconds = 10.0
    """Within so many seconds a client must have sent a request's headers."""
    body_timeout: Seconds = 60.0
    """And within so many more its body. Likewise, so long may a client let a response lie unread."""
    hang_timeout: Seconds = 120.0
    """An engine that does nothing for so many seconds is killed and started again."""

    def settings_of(self, name: str) -> ModelSettings:
        """What is known of a model, with the server's settings where it has none of its own."""
        given = self.models[name]
        settings = given if isinstance(given, ModelSettings) else ModelSettings(path=given)
        return settings if settings.engine is not None else settings.model_copy(update={"engine": self.engine})
