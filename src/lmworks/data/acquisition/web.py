"""Reading a URL (`https`, `http` or `file`) with certificates, proxy, credentials and retries. Knows no registry."""

from __future__ import annotations

import base64
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
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
        authorization: `//host/path/` to the header for addresses below it.

    Raises:
        OSError: the certificates cannot be read.
    """

    def __init__(
        self, certificate: str | None = None, proxy: str | None = None, timeout: float = 60.0,
        authorization: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._timeout, self._authorization = timeout, authorization or {}
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
            ConnectionError: what answers does not speak HTTP.
            ValueError: the scheme is none of https, http and file, or the address is none.
        """
        request = self._request(url, accept)
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
            except http.client.InvalidURL:  # its message repeats the address, which may hold a password
                raise ValueError("its address or its proxy's cannot be understood") from None
            except http.client.HTTPException as error:
                if attempt == ATTEMPTS:
                    raise ConnectionError(f"what answers does not speak HTTP: {type(error).__name__}") from None
            time.sleep(0.5 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _request(self, url: str, accept: str) -> urllib.request.Request:
        """A request whose credentials travel in a header that is not forwarded when another host takes over."""
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES:
            raise ValueError("the address must begin with https, http or file")
        user, at, host = parts.netloc.rpartition("@")
        request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)), headers={"Accept": accept})
        below = [place for place in self._authorization if f"//{host}{parts.path}".startswith(place)]
        if at:
            authorization = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
        elif below:
            authorization = self._authorization[max(below, key=len)]
        else:
            return request
        request.add_unredirected_header("Authorization", authorization)
        return request
