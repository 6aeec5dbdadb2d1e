"""`lmworks generate MODEL PROMPT`: continue a text, or answer it with an encoder-decoder. Knows no decoding."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from lmworks.cli.stage import DASHES
from lmworks.cli.streaming import sampling_options, sampling_params, stream

DEFAULTS = {"temperature": 0.8, "max_tokens": 100}


def _run(model: Path, prompt: str, **given: Any) -> None:
    params = sampling_params(DEFAULTS, given)
    from lmworks.engine import AsyncLLM

    text = sys.stdin.read() if prompt == "-" else prompt
    llm = AsyncLLM(model, kind="generate")
    try:
        if not llm.prompts.has_encoder:
            click.echo(text, nl=False)
        stream(llm, llm.prompts.text(text), params)
    finally:
        llm.shutdown()


generate = click.Command(
    name="generate",
    callback=_run,
    help="Continue or answer PROMPT (`-` reads it from standard input) with MODEL, a model folder or GGUF file.",
    params=[
        click.Argument(["model"], type=click.Path(path_type=Path)),
        click.Argument(["prompt"]),
        *sampling_options(DEFAULTS),
    ],
    context_settings=dict(DASHES),
)
