"""Serve once, ask each model one question over HTTP, stop: the end of a smoke run. Knows the server by its wire."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from lmworks.core.config import Config
from lmworks.core.errors import ConfigError, ProbeError
from lmworks.core.progress import say
from lmworks.pipeline.stages import Stage

QUESTION = "What is the capital of France?"
_SECONDS = 60.0


def serve_once(stage: Stage, config: Config) -> None:
    """Serve on a free port, get one answer from every served model, and stop.

    Raises:
        ProbeError: no model is served, or one did not answer.
        LMWorksError: the server could not start.
    """
    from lmworks.server.serve import ServeConfig, start_in_background

    if not isinstance(config, ServeConfig):
        raise ConfigError(f"a smoke run cannot stop the stage {stage.name!r} by itself", "Run without --smoke")
    key = config.api_key or ""
    with start_in_background(config.model_copy(update={"host": "127.0.0.1", "port": 0})) as server:
        models = [model["id"] for model in _call(f"{server.url}/v1/models", key)["data"]]
        if set(models) != set(config.models):
            raise ProbeError(f"the server lists {sorted(models)}, not {sorted(config.models)}", "See its messages")
        for model in models:
            say(f"    {model}: {_ask(server.url, key, model)!r}")


def _ask(url: str, key: str, model: str) -> str:
    """The model's answer: in chat where it has a chat template, else as plain completion."""
    sampling = {"model": model, "max_tokens": 24, "temperature": 0}
    chat = sampling | {"messages": [{"role": "user", "content": QUESTION}]}
    try:
        return str(_call(f"{url}/v1/chat/completions", key, chat)["choices"][0]["message"]["content"])
    except urllib.error.HTTPError as error:
        if error.code != 400:
            raise ProbeError(f"{model} answered with HTTP {error.code}: {error.read(300)!r}", "") from None
    try:
        return str(_call(f"{url}/v1/completions", key, sampling | {"prompt": QUESTION})["choices"][0]["text"])
    except urllib.error.HTTPError as error:
        raise ProbeError(f"{model} answered with HTTP {error.code}: {error.read(300)!r}", "") from None


def _call(url: str, key: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=_SECONDS) as response:
        return json.load(response)
