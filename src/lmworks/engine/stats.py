"""What the engine has done and holds right now, as one value. Knows no exporter."""

from __future__ import annotations

from dataclasses import dataclass, field


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
