"""Reading a URL (`https`, `http` or `file`) with certificates, proxy, credentials and retries. Knows no registry."""

from __future__ import annotations

import base64
import http.client
import ssl
import time
import urllib.error
import urllib.request
from urllib.parse import unquote, urlsplit, urlunsplit

ATTEMPTS = 3
_SCHEMES = {"https", "http", "file"}
_PASSING = {408, 429, 500, 502, 503, 504}


class Response:
    """An open answer."""

    def __init__(self, raw: http.client.HTTPResponse) -> None:
        self._raw = raw
        self.url: str = raw.url
        """Where the answer came from, after redirects."""
        self.content_type: str = raw.headers.get("Content-Type", "")

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, or all that remain.

        Raises:
            ConnectionError: the connection broke before the end.
        """
        try:
            return self._raw.read(size)
        except (http.client.HTTPException, OSError) as error:
            raise ConnectionError(f"the connection broke: {error!r}") from error

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()


class WebClient:
    """Opens URLs.

    Args:
        certificate: a file of certificate authorities; None means the system's (and `SSL_CERT_FILE`).
        proxy: address of a proxy for http and https; None means the environment's.
        timeout: seconds.
    """

    def __init__(self, certificate: str | None = None, proxy: str | None = None, timeout: float = 60.0) -> None:
        self._timeout = timeout
        handlers: list[urllib.request.BaseHandler] = [
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=certificate))
        ]
        if proxy:
            handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
        self._opener = urllib.request.build_opener(*handlers)

    def open(self, url: str, accept: str = "*/*") -> Response:
        """Open a URL; a passing failure is tried again twice.

        Raises:
            URLError: the address cannot be reached or answers with an error status.
            ValueError: the scheme is none of https, http and file.
        """
        request = _request(url, accept)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return Response(self._opener.open(request, timeout=self._timeout))
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in _PASSING or attempt == ATTEMPTS:
                    raise
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                if attempt == ATTEMPTS or request.type == "file":
                    raise
            time.sleep(0.5 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


def _request(url: str, accept: str) -> urllib.request.Request:
    """A request whose credentials travel in a header that is not forwarded when another host takes over."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"the address must begin with https, http or file, not {parts.scheme!r}")
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)), headers={"Accept": accept})
    if at:
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}")
    return request
