"""`lmworks chat MODEL`: a conversation in the terminal. Knows no decoding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmworks.cli.stage import DASHES
from lmworks.cli.streaming import sampling_options, sampling_params, stream
from lmworks.core.errors import RequestError, RequestTooLongError
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams

if TYPE_CHECKING:
    from lmworks.engine import AsyncLLM

DEFAULTS = {"temperature": 0.7, "max_tokens": 256}


def _run(model: Path, system: str | None, **given: Any) -> None:
    params = sampling_params(DEFAULTS, given)
    from lmworks.engine import AsyncLLM

    llm = AsyncLLM(model)
    try:
        if llm.tokenizer.chat_template is None:
            raise RequestError(f"{model} has no chat template", f"Complete a text: lmworks generate {model} PROMPT")
        click.secho("Ctrl-C stops an answer, /reset begins anew, Ctrl-D ends.", dim=True, err=True)
        converse(llm, [Message(role="system", content=system)] if system else [], params)
    finally:
        llm.shutdown()


def converse(llm: AsyncLLM, opening: list[Message], params: SamplingParams) -> None:
    """Read lines and answer each until the input ends."""
    history = list(opening)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo()
            return
        if line == "/reset":
            history = list(opening)
        elif line:
            history = _answer(llm, [*history, Message(role="user", content=line)], len(opening), params)


def _answer(llm: AsyncLLM, history: list[Message], kept: int, params: SamplingParams) -> list[Message]:
    """The history with the assistant's turn; the oldest turns are dropped when the context is full."""
    try:
        prompt = llm.tokenizer.encode_chat(history, add_generation_prompt=True).token_ids
        return [*history, Message(role="assistant", content=stream(llm, prompt, params))]
    except KeyboardInterrupt:
        click.secho("[stopped]", dim=True, err=True)
        return history[:-1]
    except RequestTooLongError as error:
        if len(history) - kept <= 1:
            click.secho(str(error), fg="red", err=True)
            return history[:-1]
        click.secho("[the context is full: forgetting the oldest turn]", dim=True, err=True)
        return _answer(llm, history[:kept] + history[kept + 2 :], kept, params)


chat = click.Command(
    name="chat",
    callback=_run,
    help="Talk to MODEL, a model folder or GGUF file with a chat template.",
    params=[
        click.Argument(["model"], type=click.Path(path_type=Path)),
        click.Option(["--system"], help="A system message."),
        *sampling_options(DEFAULTS),
    ],
    context_settings=dict(DASHES),
)
