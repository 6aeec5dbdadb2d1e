"""Serve the labelling page until told to stop. Knows no label."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from lmworks.core.errors import ServerError, require
from lmworks.data.labels.app import label_app
from lmworks.data.labels.study import Study

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(study: Study, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        study: which labels are collected.
        host: address to listen on. Beyond this machine whoever reaches it can label under any name.
        port: 0 takes a free one.
        ready: is told the page's address.

    Raises:
        ServerError: the address cannot be listened on.
        MissingExtraError: the extra `serve` is not installed.
    """
    require("uvicorn", "serve")
    import uvicorn

    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ServerError(f"cannot listen on {host}:{port}: {error.strerror}", "Choose another --port") from None
    names = ("127.0.0.1", "localhost", "[::1]") if host in LOOPBACK else ("*",)
    config = uvicorn.Config(label_app(study, names), log_level="warning", access_log=False, lifespan="off")
    with contextlib.closing(listener):
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listener])
