"""Who asks, as far as engines care: whose cached prefixes a request may meet. Knows no key and no route.

Two tenants must not learn from response times what the other one sent (CVE-2025-46570), so the salt of the prefix cache
comes from the key that the gate has checked, not from what a client claims.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from lmworks.server.keys import identity


@dataclass(frozen=True)
class Caller:
    """One client."""

    salt: str = ""
    """Requests of one salt share cached prefixes; stored responses and files are theirs alone."""
    priority: int = 0
    """Of requests that say none; lower goes first."""


def caller_of(request: Request) -> Caller:
    """The client behind a request: clients with one key are one."""
    given = request.headers.get("authorization", "")
    return Caller(identity(given.encode("latin-1")) if given else "")
