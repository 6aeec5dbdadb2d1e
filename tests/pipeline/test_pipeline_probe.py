"""The end of a smoke run: every model must answer, in chat or as completion, or the run fails by name."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_stages import STAGES, WaitConfig

from lmworks.core.errors import ConfigError, ProbeError
from lmworks.pipeline.probe import serve_once
from lmworks.pipeline.stages import STAGES as REAL_STAGES
from lmworks.server.config import ServeConfig


@contextmanager
def server(models: dict[str, int], asked: list[str]) -> Iterator[SimpleNamespace]:
    """A server whose models answer chats with the given status, and completions always, if they are called base."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": name} for name in models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(f"{self.path} {body['model']} {self.headers['Authorization']}")
            if self.path.endswith("/chat/completions"):
                self._send(models[body["model"]], {"choices": [{"message": {"content": "hi"}}]})
            else:
                self._send(200 if body["model"] == "base" else 400, {"choices": [{"text": "there"}]})

        def _send(self, status: int, body: dict) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{httpd.server_port}")
        httpd.shutdown()
        thread.join()


def probe(monkeypatch: pytest.MonkeyPatch, listed: dict[str, int], configured: set[str]) -> list[str]:
    asked: list[str] = []
    monkeypatch.setattr("lmworks.server.serve.start_in_background", lambda config: server(listed, asked))
    config = ServeConfig(models={name: Path(name) for name in configured}, api_key="secret")
    serve_once(REAL_STAGES["serve"], config)
    return asked


def test_each_model_answers_in_its_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    asked = probe(monkeypatch, {"chat": 200, "base": 400}, {"chat", "base"})
    assert asked == [
        "/v1/chat/completions chat Bearer secret",
        "/v1/chat/completions base Bearer secret",
        "/v1/completions base Bearer secret",
    ]
    said = capsys.readouterr().err
    assert "chat: 'hi'" in said
    assert "base: 'there'" in said


@pytest.mark.parametrize(
    ("listed", "configured", "message"),
    [
        ({"chat": 500}, {"chat"}, "chat answered with HTTP 500"),
        ({"chat": 400}, {"chat"}, "chat answered with HTTP 400"),
        ({"chat": 200}, {"chat", "other"}, r"lists \['chat'\], not \['chat', 'other'\]"),
    ],
)
def test_silence_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, listed: dict[str, int], configured: set[str], message: str
) -> None:
    with pytest.raises(ProbeError, match=message):
        probe(monkeypatch, listed, configured)


def test_other_endless_stages_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot stop the stage 'wait'"):
        serve_once(STAGES["wait"], WaitConfig(model=Path("x")))
