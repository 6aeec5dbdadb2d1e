"""`lmworks chat MODEL`: a conversation in the terminal. Knows no decoding.

A model with a chat template remembers the conversation. Without one, a model with an encoder answers every line by
itself, and any other continues it.
"""

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

    llm = AsyncLLM(model, kind="generate")
    try:
        if system and llm.tokenizer.chat_template is None:
            raise RequestError(f"{model} has no chat template, so no place for a system message", "Leave --system out")
        click.secho(_greeting(llm), dim=True, err=True)
        converse(llm, [Message(role="system", content=system)] if system else [], params)
    finally:
        llm.shutdown()


def _greeting(llm: AsyncLLM) -> str:
    """What happens to the lines, and which keys do what."""
    if llm.tokenizer.chat_template is not None:
        return "Ctrl-C stops an answer, /reset begins anew, Ctrl-D ends."
    done = "answered" if llm.prompts.has_encoder else "continued"
    return f"No chat template: every line is {done} by itself. Ctrl-C stops an answer, Ctrl-D ends."


def converse(llm: AsyncLLM, opening: list[Message], params: SamplingParams) -> None:
    """Read lines and answer each until the input ends."""
    remembers = llm.tokenizer.chat_template is not None
    history = list(opening)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo()
            return
        if line == "/reset" or not remembers:
            history = list(opening)
        if line and line != "/reset":
            history = _answer(llm, [*history, Message(role="user", content=line)], len(opening), params)


def _answers(llm: AsyncLLM) -> bool:
    """Whether the model is made for being asked; any other continues a text."""
    return llm.prompts.has_encoder or llm.tokenizer.chat_template is not None


def _answer(llm: AsyncLLM, history: list[Message], kept: int, params: SamplingParams) -> list[Message]:
    """The history with the assistant's turn; the oldest turns are dropped when the context is full."""
    try:
        asked = llm.prompts.chat(history) if _answers(llm) else llm.prompts.text(history[-1].content)
        return [*history, Message(role="assistant", content=stream(llm, asked, params))]
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
    help="Talk to MODEL, a model folder or GGUF file; without a chat template it answers or continues every line.",
    params=[
        click.Argument(["model"], type=click.Path(path_type=Path)),
        click.Option(["--system"], help="A system message."),
        *sampling_options(DEFAULTS),
    ],
    context_settings=dict(DASHES),
)
