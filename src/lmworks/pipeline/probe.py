"""Start a server stage once, ask each of its models one question over HTTP, stop it: the end of a smoke run.

The server runs as the process a user would start. Knows the server only by its wire.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from lmworks.core.config import Config
from lmworks.core.errors import ProbeError
from lmworks.core.progress import say
from lmworks.pipeline.stages import Stage

QUESTION = "What is the capital of France?"
_START_SECONDS, _ANSWER_SECONDS, _STOP_SECONDS = 90.0, 60.0, 20.0


def serve_once(stage: Stage, config: Config) -> None:
    """Serve on a free port, get one answer from every served model, and stop.

    Raises:
        ProbeError: the server did not start, a model did not answer, or the server did not stop cleanly.
    """
    port = free_port()
    values = {**config.to_dict(), "host": "127.0.0.1", "port": port}
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder, "serve.yaml"), Path(folder, "serve.log")
        file.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
        command = [sys.executable, "-m", "lmworks", *stage.name.split(), "--config", str(file)]
        with log.open("w") as handle:
            process = subprocess.Popen(command, stdout=handle, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            base = f"http://127.0.0.1:{port}"
            _wait_until_healthy(base, process, log)
            models = [model["id"] for model in _call(f"{base}/v1/models")["data"]]
            if not models:
                raise ProbeError(f"{base}/v1/models lists no model", "Give the serve step a model")
            for model in models:
                say(f"    {model}: {_ask(base, model)!r}")
            process.send_signal(signal.SIGINT)
            code = process.wait(_STOP_SECONDS)
            if code not in (0, 130):
                raise ProbeError(f"the server ended with status {code}: {_tail(log)}", "See its messages")
        except subprocess.TimeoutExpired:
            raise ProbeError(f"the server did not stop within {_STOP_SECONDS:.0f} s", "See its messages") from None
        finally:
            process.kill()
            process.wait()


def free_port() -> int:
    """A TCP port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(base: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ProbeError(f"the server ended with status {process.returncode}: {_tail(log)}", "See its messages")
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise ProbeError(f"{base}/health did not answer within {_START_SECONDS:.0f} s: {_tail(log)}", "See its messages")


def _ask(base: str, model: str) -> str:
    """The model's answer: in chat where it has a chat template, else as plain completion."""
    sampling = {"model": model, "max_tokens": 24, "temperature": 0}
    try:
        answer = _call(f"{base}/v1/chat/completions", sampling | {"messages": [{"role": "user", "content": QUESTION}]})
        return str(answer["choices"][0]["message"]["content"])
    except urllib.error.HTTPError as error:
        if error.code != 400:
            raise ProbeError(f"{model} answered with HTTP {error.code}: {error.read()[:300]!r}", "") from None
    try:
        return str(_call(f"{base}/v1/completions", sampling | {"prompt": QUESTION})["choices"][0]["text"])
    except urllib.error.HTTPError as error:
        raise ProbeError(f"{model} answered with HTTP {error.code}: {error.read()[:300]!r}", "") from None


def _call(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as response:
        return json.load(response)


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace").strip()[-600:]
