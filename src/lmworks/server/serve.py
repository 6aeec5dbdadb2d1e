"""`serve`: start engines, listen, answer until told to stop. Knows no request.

The port is taken before any model is loaded, so that a port in use costs a second and not a minute.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lmworks.core.errors import EngineUnavailableError, LMWorksError, ServerError, TokenizerError, require
from lmworks.core.lineage import content_hash
from lmworks.core.progress import say
from lmworks.engine.async_llm import AsyncLLM
from lmworks.engine.process.child_process import Restarts
from lmworks.server.config import AppConfig, ServeConfig
from lmworks.server.keys import Keys
from lmworks.server.served_model import ServedModel

if TYPE_CHECKING:
    from lmworks.server.draining_server import DrainingServer

__all__ = ["RunningServer", "ServeConfig", "run_in_background", "serve", "start_in_background"]

BACKLOG = 2048
PROGRESS_SECONDS = 10.0
"""Of silence at most while models are loaded."""
STOP_SECONDS = 10.0
"""How long `RunningServer.stop` waits beyond the drain before it gives up on the thread."""


def serve(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM, let running requests finish, and return.

    The server listens from the beginning and answers 503 until the engines, in processes of their own, are ready.

    Raises:
        ServerError: the address cannot be listened on.
        LMWorksError: a model cannot be loaded.
    """
    _require_extra()
    listener = listen(config.host, config.port)
    with contextlib.closing(listener), spawned(config) as models:
        server = _uvicorn(models, config)
        failures: list[LMWorksError] = []

        def watch() -> None:
            try:
                wait_until_ready(models)
            except LMWorksError as error:
                failures.append(error)
                server.stop_now()
            else:
                _announce(models, config, url_of(listener))

        watching = threading.Thread(target=watch, name="lmworks-startup", daemon=True)
        watching.start()
        server.run(sockets=[listener])
    watching.join(STOP_SECONDS)
    if failures and not server.signaled:
        raise failures[0]
    say("stopped")


def _announce(models: Mapping[str, ServedModel], config: ServeConfig, url: str) -> None:
    """Say that everything is ready."""
    for model in models.values():
        names = ", ".join((model.name, *model.aliases))
        say(f"  {names}  {model.path}, context {model.llm.max_model_len} tokens")
    if not _is_loopback(config.host) and not Keys.of(config).users:
        say(f"  note: without --api-key, whoever can reach {config.host} can use these models")
    say(f"lmworks serves on {url}  (Ctrl-C stops)")


@dataclass
class RunningServer:
    """A server in a background thread; `stop()` it, or use it as a context manager."""

    url: str
    """Without a trailing slash."""
    _server: DrainingServer
    _thread: threading.Thread
    _cleanup: contextlib.ExitStack
    _drain_seconds: float

    def stop(self) -> None:
        """Let running requests finish, free the models, and return."""
        if not self._server.draining:
            self.drain()
        self._thread.join(self._drain_seconds + STOP_SECONDS)
        self._cleanup.close()

    def drain(self) -> None:
        """Begin to stop: let nobody in any more. A second call stops at once."""
        self._server.drain()

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
        models = stack.enter_context(spawned(config))
        running = run_in_background(models, config, listener, drain_seconds=config.drain_seconds)
        try:
            wait_until_ready(models)
        except LMWorksError:
            running.drain()
            running.stop()
            raise
        running._cleanup.push(stack.pop_all())
        return running


def run_in_background(
    models: Mapping[str, ServedModel], config: AppConfig, listener: socket.socket, *, drain_seconds: float = 1.0
) -> RunningServer:
    """Serve engines that run already; they and the listener stay the caller's.

    Args:
        models: served name to model.
        config: of the application; one that is no `ServeConfig` leaves the limits of connections at their defaults.
        listener: a listening socket.
        drain_seconds: how long `stop` lets requests finish.

    Raises:
        ServerError: the server did not come up.
    """
    if not isinstance(config, ServeConfig):
        config = ServeConfig(**dict(config), models=dict.fromkeys(models, Path()))
    server = _uvicorn(models, config.model_copy(update={"drain_seconds": drain_seconds}))
    thread = threading.Thread(target=server.run, args=([listener],), name="lmworks-server", daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        if not thread.is_alive():
            raise ServerError("the server stopped while starting", "See the log above")
    return RunningServer(url_of(listener), server, thread, contextlib.ExitStack(), drain_seconds)


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
def spawned(config: ServeConfig) -> Iterator[dict[str, ServedModel]]:
    """Every model of `config` behind an engine that is being loaded; all are shut down at the end however it comes.

    Raises:
        ServerError: a path does not exist, or a name is given twice; said before any model is loaded.
    """
    settings = {name: config.settings_of(name) for name in config.models}
    names = [n for name, model in settings.items() for n in (name, *model.aliases)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ServerError(f"the model names {', '.join(twice)} are given twice", "Give every model and alias its own")
    for name, model in settings.items():
        if not model.path.exists():
            raise ServerError(
                f"the model {name!r} is not there: {model.path} does not exist", "Give its folder or .gguf file"
            )
    with contextlib.ExitStack() as stack:
        models = {}
        for name, model in settings.items():
            say(f"loading {name} from {model.path}")
            assert model.engine is not None
            restarts = Restarts(hang_seconds=config.hang_timeout)
            llm = AsyncLLM.spawn(model.path, model.engine, model.kind, restarts)
            stack.callback(llm.shutdown)
            models[name] = ServedModel(name, llm, model.path, aliases=model.aliases)
        yield models


def wait_until_ready(models: Mapping[str, ServedModel]) -> None:
    """Wait for the engines that `spawned` has started, and hash what they serve meanwhile.

    Raises:
        LMWorksError: a model cannot be loaded.
    """
    for model in models.values():
        assert model.path is not None
        model.content_hash = content_hash(model.path)
        assert isinstance(model.llm, AsyncLLM)
        with contextlib.suppress(TokenizerError):  # a model without one may still embed token ids
            _ = model.llm.tokenizer
    began = monotonic()
    for model in models.values():
        assert isinstance(model.llm, AsyncLLM)
        while model.llm.state != "ready":
            try:
                model.llm.wait_until_ready(PROGRESS_SECONDS)
            except EngineUnavailableError:
                say(f"  {model.name}: still loading after {monotonic() - began:.0f} s")


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds the listener."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{host}:{port}"


def _require_extra() -> None:
    for module in ("fastapi", "uvicorn", "httptools", "prometheus_client", "msgpack"):
        require(module, "serve")


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _uvicorn(models: Mapping[str, ServedModel], config: ServeConfig) -> DrainingServer:
    import uvicorn  # these imports take half a second, in which the engines are being loaded

    from lmworks.server.admission import Turnstile
    from lmworks.server.app import create_app
    from lmworks.server.connection import limited
    from lmworks.server.draining_server import CLOSING_SECONDS, IDLE_SECONDS, DrainingServer

    turnstile = Turnstile(config)
    settings = uvicorn.Config(
        create_app(models, config, turnstile),
        http=limited(config),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=CLOSING_SECONDS,
        timeout_keep_alive=IDLE_SECONDS,
    )
    return DrainingServer(settings, turnstile, config.drain_seconds)
