"""OpenTelemetry spans of requests, with the semantic conventions of generative AI. Needs the extra `otel`.

A span lasts from a request's headers to its response's end and continues the trace of a W3C `traceparent`. What the
engine measured is added when it tells of it, which is before the last token leaves. Knows no route.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmworks import __version__
from lmworks.core.telemetry import Event
from lmworks.server.gate import is_open
from lmworks.server.generation import Job

SECONDS = {
    "queue_seconds": "gen_ai.latency.time_in_queue",
    "time_to_first_token_seconds": "gen_ai.latency.time_to_first_token",
    "prefill_seconds": "gen_ai.latency.time_in_model_prefill",
    "decode_seconds": "gen_ai.latency.time_in_model_decode",
    "e2e_seconds": "gen_ai.latency.e2e",
}
"""Fields of `engine.request_finished` to vLLM's attributes."""
MANY_JOBS = 10_000
"""More than run at once: what was never told of is forgotten."""


class Spans:
    """Makes spans and sends them off in the background.

    Args:
        endpoint: of an OTLP collector over HTTP.
        exporter: where to send instead, for tests.
    """

    def __init__(self, endpoint: str | None, exporter: SpanExporter | None = None) -> None:
        resource = Resource.create({"service.name": "lmworks", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("lmworks.server", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._jobs: OrderedDict[str, Span] = OrderedDict()

    def begin(self, scope: Scope) -> Span:
        """Start the span of a request."""
        carrier = {k: v for k, v in Headers(scope=scope).items() if k in ("traceparent", "tracestate")}
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
        return self._tracer.start_span(
            f"{scope['method']} {scope['path']}", self._propagator.extract(carrier), SpanKind.SERVER, attributes
        )

    def asked(self, job: Job) -> None:
        """The request that is being handled has become a job."""
        span, params = trace.get_current_span(), job.params
        values: dict[str, str | int | float | None] = {
            "gen_ai.request.id": job.id,
            "gen_ai.request.model": job.model.name,
            "gen_ai.response.model": job.model.name,
            "gen_ai.request.n": params.n,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.usage.prompt_tokens": job.prompt_tokens,
            "gen_ai.usage.completion_tokens": 0,
        }
        span.set_attributes({name: value for name, value in values.items() if value is not None})
        self._jobs[job.id] = span
        if len(self._jobs) > MANY_JOBS:
            self._jobs.popitem(last=False)

    def told(self, job_id: str, event: Event) -> None:
        """The engine tells of a completion of a job."""
        span: Any = self._jobs.get(job_id)  # the SDK's spans, unlike the API's, know their attributes
        if span is None or not span.is_recording():
            return
        name = "gen_ai.usage.completion_tokens"
        span.set_attribute(name, (span.attributes or {}).get(name, 0) + event.fields.get("num_generated_tokens", 0))
        for field, attribute in SECONDS.items():
            if event.fields.get(field) is not None:
                span.set_attribute(attribute, event.fields[field])

    def close(self) -> None:
        """Send what is left."""
        self._jobs.clear()
        self._provider.shutdown()


class Tracing:
    """The ASGI layer that spans every request but probes and the page's files."""

    def __init__(self, app: ASGIApp, spans: Spans) -> None:
        self._app, self._spans = app, spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on within its span."""
        if scope["type"] != "http" or is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        span = self._spans.begin(scope)

        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(Status(StatusCode.ERROR))
            await send(message)

        with trace.use_span(span, end_on_exit=True):
            await self._app(scope, receive, send_noting)
