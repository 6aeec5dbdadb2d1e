"""What is asked of the engine: a prompt, how to decode, and how the request is to be treated. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from lmworks.core.sampling import SamplingParams


@dataclass(frozen=True)
class Request:
    """One prompt and all of its completions."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    """For the encoder where the model has one."""
    params: SamplingParams
    priority: int = 0
    """Lower goes first where the scheduling policy is `priority`."""
    cache_salt: str = ""
    """Only requests of one salt share cached prefixes; a server sets it from who asks."""
    adapter: str | None = None
    """Name of a loaded adapter; None is the base model."""
    timeout_seconds: float | None = None
    """The request is ended when so much time has passed since it arrived."""
