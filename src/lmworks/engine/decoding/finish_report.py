"""What telemetry is told when a completion has ended. Knows no exporter."""

from __future__ import annotations

from time import monotonic

from lmworks.core.telemetry import emit
from lmworks.engine.scheduling.sequence import Sequence


def report_finished(sequence: Sequence) -> None:
    """Emit `engine.request_finished`, an event for each completion; durations are in seconds."""
    now, params = monotonic(), sequence.params
    scheduled, first = sequence.first_scheduled, sequence.first_token
    generated = sequence.num_output_tokens
    emit(
        "engine.request_finished",
        request_id=sequence.request_id,
        index=sequence.index,
        finish_reason=sequence.finish_reason,
        num_prompt_tokens=sequence.num_request_tokens,
        num_generated_tokens=generated,
        num_cached_tokens=sequence.num_cached_tokens,
        num_preemptions=sequence.num_preemptions,
        num_draft_tokens=sequence.num_draft_tokens,
        num_accepted_tokens=sequence.num_accepted_tokens,
        queue_seconds=(scheduled if scheduled is not None else now) - sequence.arrived,
        time_to_first_token_seconds=None if first is None else first - sequence.arrived,
        prefill_seconds=None if first is None or scheduled is None else first - scheduled,
        decode_seconds=None if first is None else now - first,
        inference_seconds=None if scheduled is None else now - scheduled,
        time_per_output_token_seconds=None if first is None or generated < 2 else (now - first) / (generated - 1),
        e2e_seconds=now - sequence.arrived,
        n=params.n,
        max_tokens=sequence.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        priority=sequence.request.priority,
        adapter=sequence.request.adapter,
    )
