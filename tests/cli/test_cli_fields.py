"""Flags read from annotations: every kind of field a configuration may have."""

from pathlib import Path
from typing import Annotated, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import Field

from lmworks.cli.fields import flags, overrides
from lmworks.core.config import Config
from lmworks.core.errors import ConfigError


class Inner(Config):
    rate: Annotated[float, Field(gt=0)] = 0.1
    """Step size."""
    on: bool = True


class Everything(Config):
    name: str
    count: int | None = None
    kind: Literal["a", "b"] = "a"
    paths: tuple[Path, ...] = ()
    models: dict[str, Path] = {}
    weights: dict[str, float] = {}
    numbers: list[int] = []
    inner: Inner = Inner()
    maybe: Inner | None = None


def parse(*arguments: str) -> Everything:
    known = list(flags(Everything))
    seen: dict = {}
    command = click.Command("x", callback=lambda **given: seen.update(given), params=[f.option() for f in known])
    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return Everything.parse({}, overrides(known, seen))


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--name", "1e3"], "name", "1e3"),
        (["--count", "12"], "count", 12),
        (["--kind", "b"], "kind", "b"),
        (["--paths", "x", "--paths", "2"], "paths", (Path("x"), Path("2"))),
        (["--paths", "[x, y]"], "paths", (Path("x"), Path("y"))),
        (["--models", "a=x=y", "--models", "b=2"], "models", {"a": Path("x=y"), "b": Path("2")}),
        (["--weights", "a=0.5"], "weights", {"a": 0.5}),
        (["--weights", "{a: 1, b: 2}"], "weights", {"a": 1.0, "b": 2.0}),
        (["--numbers", "1", "--numbers", "2"], "numbers", [1, 2]),
        (["--inner.rate", "1e-3"], "inner", Inner(rate=0.001)),
        (["--inner.no-on"], "inner", Inner(on=False)),
        (["--inner.on", "--inner.rate", "2"], "inner", Inner(rate=2.0)),
        (["--maybe.rate", "2"], "maybe", Inner(rate=2.0)),
        ([], "maybe", None),
    ],
)
def test_flags_build_what_they_say(arguments: list[str], field: str, value: object) -> None:
    name = [] if field == "name" else ["--name", "n"]
    assert getattr(parse(*name, *arguments), field) == value


def test_malformed_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--models 'x' is not NAME=VALUE"):
        parse("--name", "n", "--models", "x")
