"""What the engine has done and holds right now, as one value. Knows no exporter."""

from __future__ import annotations

from dataclasses import dataclass, field

ITERATION_TOKEN_BUCKETS = tuple(2**power for power in range(15))


FIRST_VERSION = "0"
"""What the weights are called that an engine begins with."""


@dataclass(frozen=True)
class EngineStats:
    """A snapshot; `_total` figures only grow."""

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    kv_cache_usage: float = 0.0
    """Share of the blocks that some sequence holds, 0 to 1."""
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    preemptions_total: int = 0
    prefix_cache_queries_total: int = 0
    """Tokens looked up in the prefix cache."""
    prefix_cache_hits_total: int = 0
    """Tokens found there."""
    requests_finished_total: dict[str, int] = field(default_factory=dict)
    """Sequences by finish reason."""
    roofline_ratio: float = 0.0
    """What the latest steps read, as a share of what memory could have given in their time."""
    num_tokens_waiting: int = 0
    """Tokens to be computed for the requests that wait."""
    requests_rejected_total: dict[str, int] = field(default_factory=dict)
    """Requests that were refused because too many wait, by the limit that was met."""
    spec_decode_num_drafts_total: int = 0
    """Times that tokens were guessed for a sequence and verified."""
    spec_decode_num_draft_tokens_total: int = 0
    """Tokens guessed."""
    spec_decode_num_accepted_tokens_total: int = 0
    """Tokens guessed right."""
    spec_decode_num_accepted_tokens_per_pos: tuple[int, ...] = ()
    """Of those, by their place in the guess."""
    iteration_tokens: tuple[int, ...] = ()
    """Steps by the tokens they computed: up to each of `ITERATION_TOKEN_BUCKETS`, then more."""
    iteration_tokens_sum: int = 0
    """Tokens computed by all steps."""
    adapters: dict[str, str] = field(default_factory=dict)
    """Loaded adapters: folder by name."""
    adapters_running: tuple[str, ...] = ()
    """Names of those that running requests have."""
    adapters_waiting: tuple[str, ...] = ()
    """Names of those that waiting requests have."""
    weight_version: str = ""
    """What the weights are called that serve."""
    weight_path: str = ""
    """Where they came from; empty for memory."""
    sleep_level: int = 0
    """0 is awake."""
