"""Any endpoint of OpenAI's shape as a `Generator`, one request at a time and thread-safe. Knows no server of ours.

What passes (a timeout, a refused connection, 408, 429, 5xx) is tried again after a wait that doubles, or that the
server asks for; what does not pass is an error at once.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from lmworks.core.errors import ConfigError, EndpointError
from lmworks.core.generation import CompletionOutput, FinishReason, RequestOutput
from lmworks.core.messages import Message
from lmworks.core.sampling import SamplingParams

_SENT = ("n", "temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens", "seed")
"""Sampling parameters that every such endpoint knows; others are sent only where they differ from what they mean."""
_EXTENSIONS = ("top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos")
"""Of vLLM and this project."""
_PASSING = (408, 425, 429, 500, 502, 503, 504)
MAX_ANSWER = 1 << 26
"""Bytes of an answer."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key is sent where the user said and nowhere else."""

    def redirect_request(self, *_: object) -> None:
        """Leave the redirection as the answer that it is."""


_OPENER = urllib.request.build_opener(_NoRedirects)


class HttpGenerator:
    """A model behind an endpoint.

    Args:
        url: up to and with `/v1`.
        model: name under which the endpoint serves it.
        api_key: sent as a bearer token; never shown in an error.
        timeout: seconds without an answer after which a try is given up.
        retries: further tries of what passes.
        wait: seconds before the second try; they double with each one.

    Raises:
        ConfigError: the address is none.
    """

    def __init__(
        self, url: str, model: str, api_key: str = "", *, timeout: float = 600.0, retries: int = 4, wait: float = 1.0
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ConfigError(f"{url!r} is no address of an endpoint", "Write it as https://host/v1")
        self._url, self._model, self._timeout, self._retries, self._wait = (
            url.rstrip("/"),
            model,
            timeout,
            retries,
            wait,
        )
        self._headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {api_key}"} if api_key else {}),
        }

    def chat(
        self, conversations: Sequence[Sequence[Message]], sampling_params: SamplingParams, /
    ) -> list[RequestOutput]:
        """One assistant turn per conversation, in order.

        Raises:
            EndpointError: the endpoint did not answer, or answered with an error.
        """
        return [
            self._ask("/chat/completions", {"messages": [m.to_template() for m in messages]}, sampling_params)
            for messages in conversations
        ]

    def generate(self, prompts: Sequence[str], sampling_params: SamplingParams) -> list[RequestOutput]:
        """One continuation per prompt, in order; errors as in `chat`."""
        return [self._ask("/completions", {"prompt": prompt}, sampling_params) for prompt in prompts]

    def _ask(self, route: str, asked: Mapping[str, Any], params: SamplingParams) -> RequestOutput:
        body = {"model": self._model, **asked}
        body |= {name: value for name in _SENT if (value := getattr(params, name)) is not None}
        fields = type(params).model_fields
        body |= {name: value for name in _EXTENSIONS if (value := getattr(params, name)) != fields[name].default}
        if params.stop:
            body["stop"] = list(params.stop)
        told = self._post(route, json.dumps(body).encode())
        try:
            usage = told.get("usage") or {}
            counted = (int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))
            return RequestOutput(
                str(told.get("id", "")), str(asked.get("prompt", "")), (), tuple(map(_completion, told["choices"])),
                num_tokens=counted,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError):
            raise EndpointError(
                f"{self._url} answered something else than a completion: {json.dumps(told)[:200]}",
                "See to the endpoint",
            ) from None

    def _post(self, route: str, body: bytes) -> Any:
        for tries_left in range(self._retries, -1, -1):
            wait = self._wait * 2 ** (self._retries - tries_left)
            try:
                request = urllib.request.Request(self._url + route, body, self._headers)
                with _OPENER.open(request, timeout=self._timeout) as reply:
                    return json.loads(reply.read(MAX_ANSWER))
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.read(500).decode('utf-8', 'replace')}"
                passing = error.code in _PASSING
                asked = error.headers.get("Retry-After") or ""
                wait = min(float(asked), self._timeout) if asked.isdecimal() else wait
            except (OSError, http.client.HTTPException, ValueError) as error:  # a cut answer is no JSON
                reason, passing = f"{type(error).__name__}: {error}", True
            if not passing or not tries_left:
                break
            time.sleep(wait)
        raise EndpointError(f"{self._url}{route}: {reason}", "See to the endpoint, the key and the model's name")


def _completion(choice: Mapping[str, Any]) -> CompletionOutput:
    said = choice["message"].get("content") if "message" in choice else choice["text"]
    finish: Literal["stop", "length"] | FinishReason = "length" if choice.get("finish_reason") == "length" else "stop"
    return CompletionOutput(said or "", (), finish)
