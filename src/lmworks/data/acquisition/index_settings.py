"""Where packages come from on this machine: pip's own settings and npm's registry.

pip is asked for its merged configuration (files and environment); where pip is absent, its environment
variables alone count. Knows nothing of downloading.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

PYPI = "https://pypi.org/simple"
NPM = "https://registry.npmjs.org"


@dataclass(frozen=True)
class IndexSettings:
    """What pip would use to reach package indexes."""

    indexes: tuple[str, ...] = (PYPI,)
    certificate: str | None = None
    """A bundle of certificate authorities; None means the system's."""
    proxy: str | None = None
    timeout: float = 60.0
    """Seconds without an answer before a connection is given up."""

    @classmethod
    def read(cls) -> IndexSettings:
        """The settings in force for this interpreter."""
        values = _pip_values()
        try:
            timeout = max(float(values.get("timeout") or values.get("default-timeout") or cls.timeout), 1.0)
        except ValueError:
            timeout = cls.timeout
        main = (
            ()
            if values.get("no-index", "").lower() in {"1", "true", "yes", "on"}
            else (values.get("index-url") or PYPI,)
        )
        return cls(
            indexes=(*main, *(url for url in values.get("extra-index-url", "").split() if main)),
            certificate=values.get("cert") or None,
            proxy=values.get("proxy") or None,
            timeout=timeout,
        )


def _pip_values() -> dict[str, str]:
    """Option name to value; later, more specific sources win as they do in pip."""
    values: dict[str, str] = {}
    command = [sys.executable, "-m", "pip", "config", "list"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        listed = ""
    for scope in ("global.", "download.", ":env:."):
        for line in listed.splitlines():
            key, _, literal = line.partition("=")
            if key.startswith(scope):
                try:
                    values[key.removeprefix(scope)] = str(ast.literal_eval(literal))
                except (ValueError, SyntaxError):
                    continue
    for name, value in os.environ.items():
        if name.startswith("PIP_"):
            values[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return values


def npm_registry() -> str:
    """The registry of npm: the environment, else the user's `.npmrc`, else the public one."""
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        if os.environ.get(name):
            return os.environ[name]
    settings = Path.home() / ".npmrc"
    if settings.is_file():
        for line in settings.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "registry" and value.strip():
                return value.strip()
    return NPM


def redact(url: str) -> str:
    """An address as it may be shown: without user name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
