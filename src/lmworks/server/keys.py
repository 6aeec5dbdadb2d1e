"""API keys: where they come from, and whether one is right, in time that tells nothing. Knows no HTTP.

Kept as digests only, so that no key can reach a log or an error.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass

from lmworks.core.errors import ServerError
from lmworks.server.config import AppConfig

KEY_VARIABLE, ADMIN_VARIABLE = "LMWORKS_API_KEY", "LMWORKS_ADMIN_API_KEY"


@dataclass(frozen=True)
class Keys:
    """The keys of one server, as SHA-256 digests."""

    users: tuple[bytes, ...] = ()
    """Without any, whoever reaches the server may use it."""
    admins: tuple[bytes, ...] = ()
    """Without any, nobody may change what is served."""

    @classmethod
    def of(cls, config: AppConfig, environment: Mapping[str, str] = os.environ) -> Keys:
        """Gather keys from the configuration, its file and the environment.

        Raises:
            ServerError: the file cannot be read or holds no key.
        """
        users = [config.api_key or "", *environment.get(KEY_VARIABLE, "").split(",")]
        if config.api_key_file is not None:
            try:
                lines = config.api_key_file.read_text(encoding="utf-8").split()
            except (OSError, UnicodeDecodeError) as error:
                raise ServerError(f"cannot read the keys in {config.api_key_file}: {error}", "Give a file") from None
            if not lines:
                raise ServerError(f"{config.api_key_file} holds no key", "Write one a line, or leave the file out")
            users += lines
        admins = [config.admin_api_key or "", *environment.get(ADMIN_VARIABLE, "").split(",")]
        return cls(_digests(users), _digests(admins))

    def is_user(self, authorization: bytes) -> bool:
        """Whether a header `Authorization` lets its sender use models; an administrator may."""
        return _known(authorization, (*self.users, *self.admins))

    def is_admin(self, authorization: bytes) -> bool:
        """Whether it lets its sender change what is served."""
        return _known(authorization, self.admins)


def identity(authorization: bytes) -> str:
    """A name for whoever holds a key, from which the key cannot be found again."""
    return hashlib.sha256(authorization).hexdigest()[:16]


def _digests(keys: list[str]) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(key.strip().encode()).digest() for key in keys if key.strip())


def _known(authorization: bytes, digests: tuple[bytes, ...]) -> bool:
    """Compare with all, however early one fits."""
    scheme, _, key = authorization.partition(b" ")
    given = hashlib.sha256(key.strip()).digest()
    found = [hmac.compare_digest(given, digest) for digest in digests]
    return scheme.lower() == b"bearer" and any(found)
