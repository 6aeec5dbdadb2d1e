"""Requests that cannot be served are refused before they are queued. Knows nothing that changes."""

from __future__ import annotations

from collections.abc import Sequence

from lmworks.core.errors import MissingExtraError, RequestError, RequestTooLongError, require
from lmworks.core.sampling import SamplingParams
from lmworks.engine.decoding.logits_processors import logits_rules
from lmworks.engine.execution.kv_cache import CacheSize
from lmworks.tokenization import Tokenizer


def check_prompt(prompt_token_ids: Sequence[int], vocab_size: int, size: CacheSize) -> None:
    """Refuse a prompt that is empty, too long, or not of the vocabulary.

    Raises:
        RequestTooLongError: it leaves no room for a token, or exceeds what the encoder takes.
        RequestError: it is empty, or a token id is impossible.
    """
    length = len(prompt_token_ids)
    if not length:
        raise RequestError("the prompt has no tokens", "Give at least one token")
    if size.max_source_len and length > size.max_source_len:
        raise RequestTooLongError(
            f"the source has {length} tokens and the encoder takes {size.max_source_len}",
            f"Shorten it to {size.max_source_len} tokens",
        )
    if not size.max_source_len and length >= size.max_model_len:
        raise RequestTooLongError(
            f"the prompt has {length} tokens and the context holds {size.max_model_len}, "
            "of which at least one is for the completion",
            f"Shorten the prompt to {size.max_model_len - 1} tokens",
        )
    if min(prompt_token_ids) < 0 or max(prompt_token_ids) >= vocab_size:
        bad = next(i for i in prompt_token_ids if not 0 <= i < vocab_size)
        raise RequestError(
            f"token id {bad} in prompt is outside the vocabulary of {vocab_size}", "Use ids of this model"
        )


def check_params(
    params: SamplingParams,
    eos_token_ids: frozenset[int],
    tokenizer: Tokenizer | None,
    vocab_size: int,
    has_encoder: bool,
) -> None:
    """Refuse parameters that the model or what surrounds it cannot follow.

    Raises:
        RequestError: a token id, stop string or word is impossible, or needs what is missing.
    """
    logits_rules(params, eos_token_ids, tokenizer, vocab_size)
    if "" in params.stop:
        raise RequestError("a stop string is empty", "Leave it out")
    if params.stop and tokenizer is None:
        raise RequestError(f"stop strings {params.stop} need a tokenizer", "Use stop_token_ids")
    if params.prompt_logprobs is not None and has_encoder:
        raise RequestError("there are no log-probabilities of what an encoder reads", "Leave prompt_logprobs out")
    if params.structured_outputs is not None:
        if tokenizer is None:
            raise RequestError("structured outputs need a tokenizer", "Give the engine one")
        try:
            require("llguidance", "structured")
        except MissingExtraError as error:
            raise RequestError(f"structured outputs are not available: {error.problem}", error.remedy) from error
