"""Where packages come from on this machine: pip's own settings, and npm's.

pip is asked for its merged configuration (files and environment); where pip is absent, its environment
variables alone count. npm's files are read, because npm itself is seldom there. Knows nothing of downloading.
"""

from __future__ import annotations

import ast
import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

PYPI = "https://pypi.org/simple"
NPM = "https://registry.npmjs.org"
_VARIABLE = re.compile(r"\$\{([^}]+)\}")


@dataclass(frozen=True)
class IndexSettings:
    """What pip or npm would use to reach its indexes."""

    indexes: tuple[str, ...] = (PYPI,)
    certificate: str | None = None
    """A bundle of certificate authorities; None means the system's."""
    proxy: str | None = None
    timeout: float = 60.0
    """Seconds without an answer before a connection is given up."""
    authorization: Mapping[str, str] = field(default_factory=dict)
    """`//host/path/` to the `Authorization` of what lies below; never shown."""

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
        indexes = (*main, *(url for url in values.get("extra-index-url", "").split() if main))
        return cls(
            indexes=indexes,
            certificate=values.get("cert") or None,
            proxy=values.get("proxy") or None,
            timeout=timeout,
            authorization=_of_addresses(indexes),
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


def npm_settings(project: str) -> IndexSettings:
    """Where npm would get a project: by its environment, else the files of this folder, the user and the machine.

    As npm does, a registry of the project's scope (`@scope:registry`) comes before the registry of all.
    """
    values = _npm_values()
    scope = project.partition("/")[0] if project.startswith("@") else ""
    registry = values.get(f"{scope}:registry") or values.get("registry") or NPM
    return IndexSettings(
        indexes=(registry,),
        certificate=values.get("cafile") or None,
        proxy=values.get("https-proxy") or values.get("proxy") or None,
        authorization=_npm_authorization(values),
    )


def _npm_values() -> dict[str, str]:
    environment = {
        name[len("npm_config_") :].lower().replace("_", "-"): value
        for name, value in os.environ.items()
        if name.lower().startswith("npm_config_")
    }
    chosen = environment.get("globalconfig")
    machine = [Path(chosen)] if chosen else [Path(root, "etc/npmrc") for root in (sys.prefix, "/usr", "/usr/local")]
    user = Path(environment.get("userconfig") or Path.home() / ".npmrc")
    values: dict[str, str] = {}
    for settings in (*machine, user, Path(".npmrc")):
        try:
            lines = settings.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:  # not there, a folder, or not ours to read
            continue
        for line in lines:
            key, found, value = line.partition("=")
            if found and not key.lstrip().startswith(("#", ";")):
                values[key.strip()] = _VARIABLE.sub(lambda m: os.environ.get(m[1], ""), value.strip().strip("\"'"))
    return values | {key: value for key, value in environment.items() if value}


def _npm_authorization(values: dict[str, str]) -> dict[str, str]:
    """`//host/path/` to the header for what lies below it."""
    found: dict[str, str] = {}
    for key, value in values.items():
        place, _, kind = key.rpartition(":")
        if not place.startswith("//"):
            continue
        if kind == "_authToken":
            found[place] = f"Bearer {value}"
        elif kind == "_auth":
            found[place] = f"Basic {value}"
        elif kind == "_password" and f"{place}:username" in values:
            try:
                password = base64.b64decode(value, validate=True).decode()
            except ValueError:  # npm writes it in base64; what is not was not written by npm
                continue
            found[place] = basic(values[f"{place}:username"], password)
    return found


def basic(user: str, password: str) -> str:
    """The header of user name and password (RFC 7617)."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def _of_addresses(urls: Iterable[str]) -> dict[str, str]:
    """What user names and passwords in addresses ask for, for everything on their hosts, as pip has it."""
    found = {}
    for url in urls:
        try:
            credentials, at, host = urlsplit(url).netloc.rpartition("@")
        except ValueError:  # no address; using it will say so
            continue
        if at:
            user, _, password = credentials.partition(":")
            found[f"//{host}/"] = basic(unquote(user), unquote(password))
    return found


def redact(url: str) -> str:
    """An address as it may be shown: without user name and password, even where they are written in a wrong way."""
    return re.sub(r"(?:(?<=//)|^(?!\w+://)).*@", "", url)
