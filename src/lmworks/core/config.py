"""The base of every configuration: frozen, validated values built once at the edge.

The same class gives code, YAML, command-line flags and JSON Schema. An unknown key is an error that
names the nearest field. Knows nothing of what is configured.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lmworks.core.errors import ConfigError


class Config(BaseModel):
    """Frozen configuration value. Build it with keywords, `parse` or `from_yaml`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Self:
        """Validate a nested mapping, after setting dotted `overrides` such as `{"model.hidden_size": 256}`.

        Raises:
            ConfigError: naming the key, the value, the rule and, for an unknown key, the nearest field.
        """
        merged = merge_overrides(values, overrides or {})
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            raise ConfigError(explain(cls, error), f"See the fields of {cls.__name__}") from None

    @classmethod
    def from_yaml(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read and validate a YAML mapping."""
        return cls.parse(load_yaml(path), overrides)

    def to_dict(self) -> dict[str, Any]:
        """The JSON-able form, as it is written into `lineage.json`."""
        return self.model_dump(mode="json")


def load_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error}", "Give the path of a UTF-8 YAML file"
        ) from None
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}", "Fix the syntax at the place named") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"{path} holds a {type(loaded).__name__}, not a mapping of fields", "Write `field: value` lines"
        )
    return loaded


def merge_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of `values` with each dotted key of `overrides` set."""
    merged: dict[str, Any] = {k: merge_overrides(v, {}) if isinstance(v, Mapping) else v for k, v in values.items()}
    for dotted, value in overrides.items():
        *parents, leaf = dotted.split(".")
        node = merged
        for parent in parents:
            child = node.get(parent)
            if not isinstance(child, dict):
                child = {}
                node[parent] = child
            node = child
        node[leaf] = value
    return merged


def parse_scalar(text: str) -> Any:
    """Read a command-line value the way YAML would: `3`, `1e-3`, `true`, `[a, b]`, `text`."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 (no dot) as text
        try:
            return float(value) if any(c.isdigit() for c in value) else value
        except ValueError:
            return value
    return value


def nearest(name: str, known: list[str]) -> str:
    """`" (did you mean 'x'?)"`, or the known names when none is close."""
    match = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {match[0]!r}?)" if match else f" (known: {', '.join(known)})"


def explain(cls: type[BaseModel], error: ValidationError) -> str:
    """One sentence per problem, each naming key, value and rule."""
    parts = []
    for item in error.errors():
        path = ".".join(str(p) for p in item["loc"])
        if item["type"] == "extra_forbidden":
            owner = _owner(cls, item["loc"])
            known = sorted(owner.model_fields) if owner else []
            parts.append(f"unknown field {path!r}{nearest(str(item['loc'][-1]), known) if known else ''}")
        elif item["type"] == "missing":
            parts.append(f"{path!r} is required")
        else:
            where = f"{path} = {item['input']!r}: " if path else ""
            parts.append(f"{where}{item['msg'].removeprefix('Value error, ')}")
    return f"{cls.__name__}: " + "; ".join(parts)


def _owner(cls: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The configuration class that holds the last element of `loc`, looking through unions."""
    owner: type[BaseModel] | None = cls
    for part in loc[:-1]:
        if owner is None:
            return None
        field = owner.model_fields.get(str(part))
        if field is None:  # a union tag or an index: the owner does not change
            continue
        owner = _config_in(field.annotation)
    return owner


def _config_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _config_in(argument)
        if found is not None:
            return found
    return None
