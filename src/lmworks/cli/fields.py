"""Command-line flags from a configuration class: one flag per field, nested ones dotted, help from field docstrings.

Values are read as YAML would read them and validated by the class itself. Knows no configuration in particular.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from lmworks.core.config import parse_scalar
from lmworks.core.errors import ConfigError

_SEQUENCES = (list, tuple, set, frozenset)


@dataclass(frozen=True)
class Flag:
    """One field as a flag."""

    path: str
    """Dotted field name."""
    annotation: Any
    """Type without `Annotated` and without `None`."""
    info: FieldInfo

    @property
    def parameter(self) -> str:
        """The name click passes it under."""
        return "f_" + self.path.replace(".", "__")

    @property
    def repeated(self) -> bool:
        """Whether the flag may be given several times."""
        return get_origin(self.annotation) in (*_SEQUENCES, dict)

    def option(self, default: Any = PydanticUndefined) -> click.Option:
        """The click option; `None` (or no value) means not given.

        Args:
            default: shown in place of the field's own default.
        """
        name = self.path.replace("_", "-")
        if self.annotation is bool:
            head, dot, leaf = name.rpartition(".")
            return click.Option(
                [f"--{name}/--{head}{dot}no-{leaf}", self.parameter], default=None, help=self._help(default)
            )
        return click.Option(
            [f"--{name}", self.parameter],
            metavar=_metavar(self.annotation),
            multiple=self.repeated,
            default=None,
            help=self._help(default),
        )

    def value(self, given: Any) -> Any:
        """What to hand to the configuration class for what was typed."""
        if isinstance(given, bool):
            return given
        if get_origin(self.annotation) is dict:
            return self._mapping(given)
        if self.repeated:
            item = next(iter(get_args(self.annotation)), str)
            if len(given) == 1 and isinstance(whole := parse_scalar(given[0]), list):
                return whole
            return [_read(item, text) for text in given]
        return _read(self.annotation, given)

    def _mapping(self, given: tuple[str, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        item = (*get_args(self.annotation), str, str)[1]
        for text in given:
            if isinstance(whole := parse_scalar(text), dict):
                values.update(whole)
                continue
            key, equals, value = text.partition("=")
            if not equals:
                raise ConfigError(f"--{self.path} {text!r} is not NAME=VALUE", f"Write --{self.path} NAME=VALUE")
            values[key] = _read(item, value)
        return values

    def _help(self, default: Any) -> str:
        said = " ".join((self.info.description or "").split())
        if default is PydanticUndefined:
            default = self.info.get_default(call_default_factory=True, validated_data={})
        if default is PydanticUndefined:
            shown = "required"
        elif default is None or (self.repeated and not default):
            shown = ""
        elif isinstance(default, BaseModel):
            shown = f"default: {type(default).__name__}"
        else:
            shown = f"default: {default}"
        return f"{said}  [{shown}]" if shown else said


def flags(config_class: type[BaseModel], prefix: str = "") -> Iterator[Flag]:
    """Every field of a configuration class, nested configurations opened."""
    for name, info in config_class.model_fields.items():
        annotation = _core(info.annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from flags(annotation, f"{prefix}{name}.")
        else:
            yield Flag(f"{prefix}{name}", annotation, info)


def overrides(known: list[Flag], given: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted overrides for the flags that were given.

    Args:
        known: the flags of the command.
        given: what click passes, by parameter name.
    """
    return {
        flag.path: flag.value(given[flag.parameter]) for flag in known if given.get(flag.parameter) not in (None, ())
    }


def _core(annotation: Any) -> Any:
    """The annotation without `Annotated`, and without `None` where one other type is left."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [a for a in get_args(annotation) if a is not type(None)]
        if len(rest) == 1:
            return _core(rest[0])
    return annotation


def _read(annotation: Any, text: str) -> Any:
    """A value typed for `annotation`: text stays text, anything else is read as YAML."""
    annotation = _core(annotation)
    return text if annotation in (str, Path) else parse_scalar(text)


def _metavar(annotation: Any) -> str:
    annotation = _core(annotation)
    if get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) is dict:
        return "NAME=" + _metavar((*get_args(annotation), str, str)[1])
    if get_origin(annotation) in _SEQUENCES:
        return _metavar(next(iter(get_args(annotation)), str))
    plain = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH", bool: "true|false"}
    return plain.get(annotation, "YAML") if isinstance(annotation, type) else "YAML"
