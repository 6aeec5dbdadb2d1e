"""Addresses of the web in one spelling, so that a page fetched twice is known. Knows no texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
from numpy.typing import NDArray

TRACKING = frozenset({"fbclid", "gclid", "dclid", "msclkid", "yclid", "igshid", "mc_cid", "mc_eid", "_ga", "ref_src"})
"""Parameters that tell how a reader came, beside those that begin with `utm_`."""
_PORTS = {"http": 80, "https": 443, "": None}


def normalize_url(url: str) -> str:
    """An address without what does not change the page: scheme, case of the host, `www.`, default port, fragment,
    tracking parameters, order of parameters, a slash at the end. One that cannot be parsed is only stripped.
    """  # noqa: D205 - the list is one sentence
    url = url.strip()
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host, port = (parts.hostname or "").removeprefix("www."), parts.port
    except ValueError:
        return url
    if port is not None and port != _PORTS.get(parts.scheme.lower()):
        host = f"{host}:{port}"
    parameters = sorted(
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if name.lower() not in TRACKING and not name.lower().startswith("utm_")
    )
    return host + parts.path.rstrip("/") + (f"?{urlencode(parameters)}" if parameters else "")


def url_keys(urls: Sequence[str]) -> NDArray[np.uint64]:
    """[urls] a hash of each normalized address; 0 where there is none."""

    def key(url: str) -> int:
        digest = hashlib.blake2b(normalize_url(url).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") | 1 if url.strip() else 0

    return np.fromiter(map(key, urls), np.uint64, len(urls))
