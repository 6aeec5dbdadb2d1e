"""Addresses of the web in one spelling, so that a page fetched twice is known. Knows no texts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import numpy as np
from numpy.typing import NDArray

TRACKING = re.compile(
    r"utm_.*|(fb|g|d|y|tt|tw)clid|msclkid|gbraid|wbraid|srsltid|igsh(id)?|mc_[ce]id|mkt_tok|_ga|_gl|_hsenc|_hsmi"
    r"|li_fat_id|ref_src",
    re.IGNORECASE,
)
"""Parameters that tell how a reader came."""
_PORTS = {"http": 80, "https": 443, "": None}
_ESCAPE = re.compile("%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")


def normalize_url(url: str) -> str:
    """An address without what does not change the page.

    That is: scheme, case of the host and how it writes letters beyond ASCII, `www.`, default port, escapes that need
    not be (RFC 3986, 6.2.2), tracking parameters, order of parameters, a slash at the end, and the fragment, but for
    those that name a page of an application (`#/a`, `#!a`). An address that cannot be parsed is only stripped.
    """
    url = url.strip()
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host, port = _ascii(parts.hostname or "").rstrip(".").removeprefix("www."), parts.port
    except ValueError:
        return url
    if port is not None and port != _PORTS.get(parts.scheme.lower()):
        host = f"{host}:{port}"
    parameters = sorted(
        (name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if not TRACKING.fullmatch(name)
    )
    page = f"#{parts.fragment}" if parts.fragment.startswith(("/", "!")) else ""
    path = _ESCAPE.sub(_escape, quote(parts.path, safe="/%:@!$&'()*+,;=~", errors="surrogatepass"))
    return host + path.rstrip("/") + (f"?{urlencode(parameters, errors='surrogatepass')}" if parameters else "") + page


def _ascii(host: str) -> str:
    """Of `münchen.de`, `xn--mnchen-3ya.de`; as it is where the rules for names forbid it."""
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return host


def _escape(found: re.Match[str]) -> str:
    letter = chr(int(found[1], 16))
    return letter if letter in _UNRESERVED else found[0].upper()


def url_keys(urls: Sequence[str]) -> NDArray[np.uint64]:
    """[urls] a hash of each normalized address; 0 where there is none."""

    def key(url: str) -> int:
        digest = hashlib.blake2b(normalize_url(url).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") | 1 if url.strip() else 0

    return np.fromiter(map(key, urls), np.uint64, len(urls))
