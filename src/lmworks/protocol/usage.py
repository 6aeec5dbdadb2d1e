"""Token counts of one response. Knows no endpoint."""

from __future__ import annotations

from typing import ClassVar

from lmworks.protocol.wire import WireResponse


class PromptTokensDetails(WireResponse):
    """What the prompt's tokens were."""

    cached_tokens: int
    """Not computed: found in the prefix cache."""


class CompletionTokensDetails(WireResponse):
    """What the completion's tokens were."""

    reasoning_tokens: int


class Usage(WireResponse):
    """How many tokens went in and came out."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"prompt_tokens_details", "completion_tokens_details"})

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None

    @classmethod
    def of(
        cls, prompt_tokens: int, completion_tokens: int, cached: int | None = None, reasoning: int | None = None
    ) -> Usage:
        """Counts with their sum.

        Args:
            prompt_tokens: of all prompts.
            completion_tokens: of all completions.
            cached: prompt tokens found in the cache; None where nobody counts them.
            reasoning: completion tokens of reasoning; None where it is not told apart.
        """
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=None if cached is None else PromptTokensDetails(cached_tokens=cached),
            completion_tokens_details=None
            if reasoning is None
            else CompletionTokensDetails(reasoning_tokens=reasoning),
        )
