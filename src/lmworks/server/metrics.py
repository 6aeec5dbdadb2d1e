"""Prometheus metrics under vLLM's names and units, so that its dashboards and routers read this server unchanged.

Latencies are those a client feels, taken at the server; the engine's own phases come from its
`engine.request_finished` events. One registry per application. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from lmworks.core.telemetry import Event
from lmworks.server.served_model import ServedModel

CONTENT_TYPE = CONTENT_TYPE_LATEST

FIRST_TOKEN_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
                       160, 640, 2560)  # fmt: skip
INTER_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST_BUCKETS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TOKEN_BUCKETS = tuple(float(2**k) for k in range(18))

GAUGES: Mapping[str, tuple[str, str]] = {
    "vllm:num_requests_running": ("num_requests_running", "Requests in the running batch."),
    "vllm:num_requests_waiting": ("num_requests_waiting", "Requests waiting to be admitted."),
    "vllm:kv_cache_usage_perc": ("kv_cache_usage", "Share of KV cache blocks in use; 1 is all."),
}
"""Metric name to the field of `EngineStats` and its help."""

COUNTERS: Mapping[str, tuple[str, str]] = {
    "vllm:prompt_tokens": ("prompt_tokens_total", "Prompt tokens processed."),
    "vllm:generation_tokens": ("generation_tokens_total", "Tokens generated."),
    "vllm:prefix_cache_queries": ("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."),
    "vllm:prefix_cache_hits": ("prefix_cache_hits_total", "Prompt tokens found in the prefix cache."),
    "vllm:num_preemptions": ("preemptions_total", "Requests put back to make room."),
}
"""Likewise for totals; Prometheus shows them with the suffix `_total`."""


class Metrics:
    """All metrics of one application."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.registry = registry = CollectorRegistry()
        label = ["model_name"]

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, label, buckets=buckets, registry=registry)

        self._rejected = Counter(
            "vllm:admission_rejections", "Requests the engine refused.", [*label, "reason"], registry=registry
        )
        self._first_token = histogram(
            "vllm:time_to_first_token_seconds", "From a request's arrival to its first token.", FIRST_TOKEN_BUCKETS
        )
        self._inter_token = histogram(
            "vllm:inter_token_latency_seconds", "Between one token of a completion and the next.", INTER_TOKEN_BUCKETS
        )
        self._latency = histogram(
            "vllm:e2e_request_latency_seconds", "From a request's arrival to its last token.", REQUEST_BUCKETS
        )
        self._prompt_size = histogram("vllm:request_prompt_tokens", "Prompt tokens per request.", TOKEN_BUCKETS)
        self._answer_size = histogram("vllm:request_generation_tokens", "Tokens generated per request.", TOKEN_BUCKETS)
        self._queue = histogram(
            "vllm:request_queue_time_seconds", "Time spent waiting to be admitted.", REQUEST_BUCKETS
        )
        self._prefill = histogram(
            "vllm:request_prefill_time_seconds", "From admission to the first token.", REQUEST_BUCKETS
        )
        self._decode = histogram(
            "vllm:request_decode_time_seconds", "From the first token to the last.", REQUEST_BUCKETS
        )
        registry.register(_EngineCollector(models))

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def first_token(self, model: str, seconds: float) -> None:
        """A request's first token came `seconds` after its arrival."""
        self._first_token.labels(model).observe(seconds)

    def next_token(self, model: str, seconds: float) -> None:
        """A further token came `seconds` after the one before."""
        self._inter_token.labels(model).observe(seconds)

    def finished(self, model: str, prompt_tokens: int, tokens: int, seconds: float) -> None:
        """A request of so many tokens ended, for whatever reason, `seconds` after its arrival."""
        self._prompt_size.labels(model).observe(prompt_tokens)
        self._answer_size.labels(model).observe(tokens)
        self._latency.labels(model).observe(seconds)

    def rejected(self, model: str) -> None:
        """The engine refused a request, as it does when its queue is full."""
        self._rejected.labels(model, "engine").inc()

    def engine_finished(self, model: str, event: Event) -> None:
        """Record the phases of a completion, as `engine.request_finished` gives them."""
        queue, first_token, decode = (
            event.fields.get(name) for name in ("queue_seconds", "time_to_first_token_seconds", "decode_seconds")
        )
        if queue is not None:
            self._queue.labels(model).observe(queue)
        if queue is not None and first_token is not None:
            self._prefill.labels(model).observe(max(0.0, first_token - queue))
        if decode is not None:
            self._decode.labels(model).observe(decode)


class _EngineCollector(Collector):
    """Reads each engine's `stats()` when scraped."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """One family per metric, one sample per model."""
        stats = {model.name: model.llm.stats() for model in self._models.values()}
        for name, (field, text) in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            for model, values in stats.items():
                gauge.add_metric([model], getattr(values, field))
            yield gauge
        for name, (field, text) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            for model, values in stats.items():
                counter.add_metric([model], getattr(values, field))
            yield counter
        finished = CounterMetricFamily(
            "vllm:request_success", "Completions finished, by reason.", labels=["model_name", "finished_reason"]
        )
        for model, values in stats.items():
            for reason, count in values.requests_finished_total.items():
                finished.add_metric([model, reason], count)
        yield finished
