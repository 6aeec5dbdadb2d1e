"""What the routes of one application share: models, settings, metrics, journal. Knows no route."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request

from lmworks.core.errors import ModelNotFoundError
from lmworks.core.telemetry import Event
from lmworks.protocol.errors import InvalidRequestError
from lmworks.server.admission import Turnstile
from lmworks.server.batch_store import BatchStore
from lmworks.server.config import AppConfig
from lmworks.server.file_store import FileStore
from lmworks.server.generation import Job
from lmworks.server.journal import Journal
from lmworks.server.metrics import Metrics
from lmworks.server.recording import Recording
from lmworks.server.response_store import ResponseStore
from lmworks.server.served_model import ServedModel

if TYPE_CHECKING:
    from lmworks.server.spans import Spans

DISCARD_FACTOR = 16
"""A body over the limit is read on and dropped up to this many times the limit, so that its sender gets to
read the refusal instead of a reset connection."""


@dataclass(frozen=True)
class ServerState:
    """One per application; reached through `state_of(request)`."""

    models: Mapping[str, ServedModel]
    config: AppConfig
    metrics: Metrics
    journal: Journal
    turnstile: Turnstile
    spans: Spans | None
    """None where nobody wants traces."""
    responses: ResponseStore
    files: FileStore
    batches: BatchStore

    @classmethod
    def of(
        cls, models: Mapping[str, ServedModel], config: AppConfig, turnstile: Turnstile, spans: Spans | None = None
    ) -> ServerState:
        """Everything new, and what the configuration's folders hold.

        Raises:
            ServerError: the journal or the folder of files cannot be written.
        """
        files = FileStore(config.files_folder)
        return cls(
            models=models,
            config=config,
            metrics=Metrics(models),
            journal=Journal(config.journal),
            turnstile=turnstile,
            spans=spans,
            responses=ResponseStore(),
            files=files,
            batches=BatchStore(files),
        )

    def close(self) -> None:
        """Release files."""
        self.journal.close()
        self.files.close()

    def model(self, name: str | None) -> ServedModel:
        """The served model of that name or alias, or the loaded adapter; without a name the first model.

        Raises:
            ModelNotFoundError: there is none.
        """
        if not name:
            return next(iter(self.models.values()))
        for model in self.models.values():
            if name == model.name or name in model.aliases:
                return model
        adapters = [adapter for model in self.models.values() for adapter in model.adapters]
        for adapter in adapters:
            if name == adapter.name:
                return adapter
        raise ModelNotFoundError(f"The model {name!r} does not exist", f"Use one of: {', '.join(self.models)}")

    def recording(self, job: Job, arrived: float) -> Recording:
        """Begin to record a job whose request came in at `arrived` (`time.perf_counter()`)."""
        self.metrics.asked(job.model.name, job.params)
        if self.spans is not None:
            self.spans.asked(job)
        return Recording(self.metrics, self.journal, job.model, job.id, job.num_choices, job.prompt_tokens, arrived)

    def on_event(self, event: Event) -> None:
        """Pass the engine's request figures on to the metrics."""
        if event.name == "engine.request_finished":
            name, _, request_id = str(event.fields.get("request_id", "")).partition("/")
            if name in self.models:
                self.metrics.engine_finished(name, event)
                if self.spans is not None:
                    self.spans.told(request_id.rpartition("-")[0], event)


def state_of(request: Request) -> ServerState:
    """The state of the application that received `request`."""
    state = request.app.state.server
    assert isinstance(state, ServerState)
    return state


async def read_body(request: Request) -> bytes:
    """The request's JSON body.

    Raises:
        InvalidRequestError: it is larger than `max_body_bytes` (413), or not declared as JSON (415), which also
            keeps web pages of other origins from sending requests without asking first.
    """
    limit = state_of(request).config.max_body_bytes
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise InvalidRequestError(
            f"The content type {media_type or '(none)'!r} is not accepted",
            "Send the header `Content-Type: application/json`",
            status=415,
        )
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            body += chunk
        elif size > DISCARD_FACTOR * limit:
            break
    if size > limit:
        raise InvalidRequestError(
            f"The request body is larger than {limit} bytes", "Send a shorter request", status=413
        )
    return bytes(body)
