"""Prometheus metrics under vLLM's names, labels and units: its dashboards and routers read this server unchanged.

Latencies are those a client feels, taken at the server; the engine's own phases come from its
`engine.request_finished` events, and what it counts from its statistics, read when Prometheus asks. One registry per
application. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from time import time

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from lmworks.core.errors import LMWorksError
from lmworks.core.sampling import SamplingParams
from lmworks.core.telemetry import Event
from lmworks.engine.stats import ITERATION_TOKEN_BUCKETS
from lmworks.server.served_model import ServedModel

CONTENT_TYPE = CONTENT_TYPE_LATEST
LABELS = ("model_name", "engine")
SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")
"""By level, in vLLM's words."""
ENGINE = "0"
"""The number of a model's engine; it has one."""

FIRST_TOKEN_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
                       160, 640, 2560)  # fmt: skip
INTER_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST_BUCKETS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TOKEN_BUCKETS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
PREEMPTION_BUCKETS = (0, 1, 2, 3, 5, 10, 20, 50, 100)

SECONDS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "vllm:time_to_first_token_seconds": ("From a request's arrival to its first token.", FIRST_TOKEN_BUCKETS),
    "vllm:inter_token_latency_seconds": ("From one token of a completion to the next.", INTER_TOKEN_BUCKETS),
    "vllm:request_time_per_output_token_seconds": ("Per token after the first, on average.", INTER_TOKEN_BUCKETS),
    "vllm:e2e_request_latency_seconds": ("From a request's arrival to its last token.", REQUEST_BUCKETS),
    "vllm:request_queue_time_seconds": ("Time spent waiting to be admitted.", REQUEST_BUCKETS),
    "vllm:request_inference_time_seconds": ("From admission to the last token.", REQUEST_BUCKETS),
    "vllm:request_prefill_time_seconds": ("From admission to the first token.", REQUEST_BUCKETS),
    "vllm:request_decode_time_seconds": ("From the first token to the last.", REQUEST_BUCKETS),
}
SIZES: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "vllm:request_prompt_tokens": ("Prompt tokens per request.", TOKEN_BUCKETS),
    "vllm:request_generation_tokens": ("Tokens generated per request.", TOKEN_BUCKETS),
    "vllm:request_max_num_generation_tokens": ("Tokens of a request's longest completion.", TOKEN_BUCKETS),
    "vllm:request_params_n": ("Completions asked for per prompt.", (1, 2, 5, 10, 20)),
    "vllm:request_params_max_tokens": ("max_tokens of requests that give it.", TOKEN_BUCKETS),
    "vllm:request_num_preemptions": ("Times a completion was put back.", PREEMPTION_BUCKETS),
    "vllm:request_prefill_kv_computed_tokens": ("Prompt tokens not found in the prefix cache.", TOKEN_BUCKETS),
}
"""Histograms: help and buckets."""

GAUGES: Mapping[str, tuple[str, str]] = {
    "vllm:num_requests_running": ("num_requests_running", "Requests in the running batch."),
    "vllm:num_requests_waiting": ("num_requests_waiting", "Requests waiting to be admitted."),
    "vllm:kv_cache_usage_perc": ("kv_cache_usage", "Share of KV cache blocks in use; 1 is all."),
    "lmworks:roofline_ratio": ("roofline_ratio", "Bytes the latest steps had to read, over what memory could give."),
}
"""Metric name to the field of `EngineStats` and its help."""

COUNTERS: Mapping[str, tuple[str, str]] = {
    "vllm:prompt_tokens": ("prompt_tokens_total", "Prompt tokens processed."),
    "vllm:generation_tokens": ("generation_tokens_total", "Tokens generated."),
    "vllm:prompt_tokens_cached": ("prefix_cache_hits_total", "Prompt tokens found in a cache."),
    "vllm:prefix_cache_queries": ("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."),
    "vllm:prefix_cache_hits": ("prefix_cache_hits_total", "Prompt tokens found in the prefix cache."),
    "vllm:num_preemptions": ("preemptions_total", "Requests put back to make room."),
    "vllm:spec_decode_num_drafts": ("spec_decode_num_drafts_total", "Guesses verified."),
    "vllm:spec_decode_num_draft_tokens": ("spec_decode_num_draft_tokens_total", "Tokens guessed."),
    "vllm:spec_decode_num_accepted_tokens": ("spec_decode_num_accepted_tokens_total", "Tokens guessed right."),
}
"""Likewise for totals; Prometheus shows them with the suffix `_total`."""

LABELED_COUNTERS: Mapping[str, tuple[str, str, str]] = {
    "vllm:request_success": ("requests_finished_total", "finished_reason", "Completions finished, by reason."),
}
"""Totals that are mappings: field, label and help."""


class Metrics:
    """All metrics of one application."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.registry = registry = CollectorRegistry()
        self._histograms = {
            name: Histogram(name, text, LABELS, buckets=buckets, registry=registry)
            for name, (text, buckets) in {**SECONDS, **SIZES}.items()
        }
        self._rejected = Counter(
            "vllm:admission_rejections", "Requests the engine refused.", ["model_name", "reason"], registry=registry
        )
        registry.register(_EngineCollector(models))

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def asked(self, model: str, params: SamplingParams) -> None:
        """A request came in with these parameters."""
        self._observe("vllm:request_params_n", model, params.n)
        if params.max_tokens is not None:
            self._observe("vllm:request_params_max_tokens", model, params.max_tokens)

    def first_token(self, model: str, seconds: float) -> None:
        """A request's first token came `seconds` after its arrival."""
        self._observe("vllm:time_to_first_token_seconds", model, seconds)

    def next_token(self, model: str, seconds: float) -> None:
        """A further token came `seconds` after the one before."""
        self._observe("vllm:inter_token_latency_seconds", model, seconds)

    def finished(self, model: str, prompt_tokens: int, tokens: int, seconds: float) -> None:
        """A request of so many tokens ended, for whatever reason, `seconds` after its arrival."""
        self._observe("vllm:request_prompt_tokens", model, prompt_tokens)
        self._observe("vllm:request_generation_tokens", model, tokens)
        self._observe("vllm:e2e_request_latency_seconds", model, seconds)

    def rejected(self, model: str, reason: str = "engine") -> None:
        """The engine refused a request, as it does when its queue is full."""
        self._rejected.labels(model, reason).inc()

    def engine_finished(self, model: str, event: Event) -> None:
        """Record the phases of a completion, as `engine.request_finished` gives them."""
        told = event.fields
        queue, prefill, decode = (told.get(f"{phase}_seconds") for phase in ("queue", "prefill", "decode"))
        tokens = told.get("num_generated_tokens", 0)
        values = {
            "vllm:request_queue_time_seconds": queue,
            "vllm:request_prefill_time_seconds": prefill,
            "vllm:request_decode_time_seconds": decode,
            "vllm:request_inference_time_seconds": None if prefill is None or decode is None else prefill + decode,
            "vllm:request_time_per_output_token_seconds": None
            if decode is None or tokens < 2
            else decode / (tokens - 1),
            "vllm:request_max_num_generation_tokens": tokens,
            "vllm:request_num_preemptions": told.get("num_preemptions"),
            "vllm:request_prefill_kv_computed_tokens": told.get("num_prompt_tokens", 0)
            - told.get("num_cached_tokens", 0),
        }
        for name, value in values.items():
            if value is not None:
                self._observe(name, model, value)

    def _observe(self, name: str, model: str, value: float) -> None:
        self._histograms[name].labels(model, ENGINE).observe(value)


class _EngineCollector(Collector):
    """Reads each engine's `stats()` when scraped."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """One family per metric, one sample per model."""
        stats = {model.name: model.llm.stats() for model in self._models.values()}
        for name, (field, text) in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            for model, values in stats.items():
                gauge.add_metric([model, ENGINE], getattr(values, field))
            yield gauge
        for name, (field, text) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=LABELS)
            for model, values in stats.items():
                counter.add_metric([model, ENGINE], getattr(values, field))
            yield counter
        for name, (field, label, text) in LABELED_COUNTERS.items():
            labeled = CounterMetricFamily(name, text, labels=[*LABELS, label])
            for model, values in stats.items():
                for key, count in getattr(values, field).items():
                    labeled.add_metric([model, ENGINE, key], count)
            yield labeled
        accepted = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Of those, by place in the guess.",
            labels=[*LABELS, "position"],
        )
        steps = HistogramMetricFamily("vllm:iteration_tokens_total", "Tokens computed per step.", labels=LABELS)
        for model, values in stats.items():
            for position, count in enumerate(values.spec_decode_num_accepted_tokens_per_pos):
                accepted.add_metric([model, ENGINE, str(position)], count)
            if values.iteration_tokens:
                steps.add_metric([model, ENGINE], *_cumulative(values.iteration_tokens, values.iteration_tokens_sum))
        yield from (accepted, steps, *self._about())

    def _about(self) -> Iterator[Metric]:
        """What an engine is, and in which state."""
        cache = GaugeMetricFamily(
            "vllm:cache_config_info", "The cache's size.", labels=[*LABELS, "block_size", "num_gpu_blocks"]
        )
        asleep = GaugeMetricFamily(
            "vllm:engine_sleep_state", "1 in the state that holds.", labels=[*LABELS, "sleep_state"]
        )
        adapters = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "When this was so: adapters that requests wait and run with.",
            labels=[*LABELS, "max_lora", "waiting_lora_adapters", "running_lora_adapters"],
        )
        for model in self._models.values():
            try:
                info = model.llm.info
            except LMWorksError:  # it is still being loaded
                continue
            cache.add_metric([model.name, ENGINE, str(info.block_size), str(info.num_kv_blocks)], 1)
            told = model.llm.stats()
            for level, state in enumerate(SLEEP_STATES):
                asleep.add_metric([model.name, ENGINE, state], level == told.sleep_level)
            names = (",".join(told.adapters_waiting), ",".join(told.adapters_running))
            if told.adapters or any(names):
                adapters.add_metric([model.name, ENGINE, str(info.max_loras), *names], time())
        yield from (cache, asleep, adapters)


def _cumulative(counts: tuple[int, ...], total: int) -> tuple[list[tuple[str, float]], float]:
    """Prometheus' form of a histogram: how many observations are at most each bound."""
    bounds = [*(str(float(bound)) for bound in ITERATION_TOKEN_BUCKETS), "+Inf"]
    so_far = 0
    buckets = []
    for bound, count in zip(bounds, counts, strict=True):
        so_far += count
        buckets.append((bound, float(so_far)))
    return buckets, float(total)
