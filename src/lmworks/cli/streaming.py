"""Stream one completion to the terminal; sampling flags shared by `generate` and `chat`. Knows no conversation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click
from pydantic_core import PydanticUndefined

from lmworks.cli.fields import Flag, flags, overrides
from lmworks.core.sampling import SamplingParams

if TYPE_CHECKING:
    from lmworks.engine import AsyncLLM

_OFFERED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "stop", "seed")
SAMPLING: list[Flag] = [flag for flag in flags(SamplingParams) if flag.path in _OFFERED]


def sampling_options(defaults: Mapping[str, Any]) -> list[click.Parameter]:
    """Flags of the decoding parameters, showing the command's `defaults`."""
    return [flag.option(defaults.get(flag.path, PydanticUndefined)) for flag in SAMPLING]


def sampling_params(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> SamplingParams:
    """Decoding parameters from what was typed, over the command's `defaults`.

    Raises:
        ConfigError: a value is out of range.
    """
    return SamplingParams.parse(defaults, overrides(SAMPLING, given))


def stream(llm: AsyncLLM, prompt: Sequence[int], params: SamplingParams) -> str:
    """Print a completion as it is generated, then its speed; Ctrl-C ends it and is passed on.

    Returns:
        The completion's text.

    Raises:
        EngineError: the model failed on this prompt.
    """
    return asyncio.run(_stream(llm, prompt, params))


async def _stream(llm: AsyncLLM, prompt: Sequence[int], params: SamplingParams) -> str:
    parts, tokens, first = [], 0, None
    async with aclosing(llm.generate(prompt, params)) as deltas:
        async for delta in deltas:
            first = first or time.perf_counter()
            tokens += len(delta.token_ids)
            parts.append(delta.text)
            click.echo(delta.text, nl=False)
            if delta.error is not None:
                click.echo()
                raise delta.error
    seconds = time.perf_counter() - (first or 0)
    click.echo()
    if tokens > 1:
        click.secho(f"[{tokens} tokens, {(tokens - 1) / seconds:.0f} tokens/s]", dim=True, err=True)
    return "".join(parts)
