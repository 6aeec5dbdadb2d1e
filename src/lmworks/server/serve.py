"""`serve`: load models, listen, answer until told to stop. Knows no request.

The port is taken before any model is loaded, so that a port in use costs a second and not a minute.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from lmworks.core.errors import ServerError, require
from lmworks.core.lineage import content_hash
from lmworks.core.progress import say
from lmworks.server.config import AppConfig, ServeConfig
from lmworks.server.served_model import ServedModel

if TYPE_CHECKING:
    import uvicorn

__all__ = ["RunningServer", "ServeConfig", "run_in_background", "serve", "start_in_background"]

BACKLOG = 2048
STOP_SECONDS = 10.0
"""How long `RunningServer.stop` waits beyond the drain before it gives up on the thread."""


def serve(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM, let running requests finish, and return.

    Raises:
        ServerError: the address cannot be listened on.
        LMWorksError: a model cannot be loaded.
    """
    _require_extra()
    listener = listen(config.host, config.port)
    with contextlib.closing(listener), loaded(config) as models:
        say(f"lmworks serves on {url_of(listener)}  (Ctrl-C stops)")
        for model in models.values():
            say(f"  {model.name}  {model.path}, context {model.llm.max_model_len} tokens")
        if not _is_loopback(config.host) and config.api_key is None:
            say(f"  note: without --api-key, whoever can reach {config.host} can use these models")
        _uvicorn(models, config, config.drain_seconds).run(sockets=[listener])
    say("stopped")


@dataclass
class RunningServer:
    """A server in a background thread; `stop()` it, or use it as a context manager."""

    url: str
    """Without a trailing slash."""
    _server: uvicorn.Server
    _thread: threading.Thread
    _cleanup: contextlib.ExitStack

    def stop(self) -> None:
        """Let running requests finish, free the models, and return."""
        self._server.should_exit = True
        timeout = self._server.config.timeout_graceful_shutdown or 0
        self._thread.join(timeout + STOP_SECONDS)
        self._cleanup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def start_in_background(config: ServeConfig) -> RunningServer:
    """Load the models and serve them from a thread of this process; returns once requests are answered.

    Raises:
        ServerError: the address cannot be listened on.
        LMWorksError: a model cannot be loaded.
    """
    _require_extra()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(listen(config.host, config.port)))
        models = stack.enter_context(loaded(config))
        running = run_in_background(models, config, listener, drain_seconds=config.drain_seconds)
        running._cleanup.push(stack.pop_all())
        return running


def run_in_background(
    models: Mapping[str, ServedModel], config: AppConfig, listener: socket.socket, *, drain_seconds: float = 1.0
) -> RunningServer:
    """Serve models that are loaded already; they and the listener stay the caller's.

    Raises:
        ServerError: the server did not come up.
    """
    server = _uvicorn(models, config, drain_seconds)
    thread = threading.Thread(target=server.run, args=([listener],), name="lmworks-server", daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        if not thread.is_alive():
            raise ServerError("the server stopped while starting", "See the log above")
    return RunningServer(url_of(listener), server, thread, contextlib.ExitStack())


def listen(host: str, port: int) -> socket.socket:
    """Take the address.

    Raises:
        ServerError: the port is in use or forbidden, or the host is not an address of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        where = f"{host}:{port}"
        if error.errno == errno.EADDRINUSE:
            raise ServerError(f"{where} is in use by another program", "Stop it or choose another --port") from None
        if error.errno == errno.EACCES:
            raise ServerError(f"this user may not listen on {where}", "Choose a --port from 1024 up") from None
        reason = error.strerror or str(error)
        raise ServerError(f"cannot listen on {where}: {reason}", "Choose a --host of this machine") from None


@contextlib.contextmanager
def loaded(config: ServeConfig) -> Iterator[dict[str, ServedModel]]:
    """Every model of `config` behind its own engine, shut down at the end however it comes.

    Raises:
        ServerError: a path does not exist; said before any model is loaded.
        LMWorksError: a model cannot be loaded.
    """
    from lmworks.engine import AsyncLLM

    for name, path in config.models.items():
        if not path.exists():
            raise ServerError(
                f"the model {name!r} is not there: {path} does not exist", "Give its folder or .gguf file"
            )
    with contextlib.ExitStack() as stack:
        models = {}
        for name, path in config.models.items():
            say(f"loading {name} from {path}")
            llm = AsyncLLM(path, config=config.engine)
            stack.callback(llm.shutdown)
            models[name] = ServedModel(name, llm, path, content_hash(path))
        yield models


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds the listener."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{host}:{port}"


def _require_extra() -> None:
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, "serve")


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _uvicorn(models: Mapping[str, ServedModel], config: AppConfig, drain_seconds: float) -> uvicorn.Server:
    import uvicorn

    from lmworks.server.app import create_app

    class Server(uvicorn.Server):
        """uvicorn, except that a signal ends it in order instead of being raised again afterwards."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return

            def stop(number: int, _: FrameType | None) -> None:
                self.force_exit = self.should_exit and number == signal.SIGINT  # the second Ctrl-C is meant
                self.should_exit = True

            before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    settings = uvicorn.Config(
        create_app(models, config),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )
    return Server(settings)
