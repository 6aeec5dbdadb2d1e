"""Configurations: one description for code, YAML and flags, and errors that name key, value, rule and nearest field."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from lmworks.core.config import Config, load_yaml, merge_overrides, parse_scalar
from lmworks.core.errors import ConfigError


class Optimizer(Config):
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3


class Train(Config):
    steps: Annotated[int, Field(ge=1)]
    optimizer: Optimizer = Optimizer()


def test_overrides_reach_nested_fields_without_touching_the_original() -> None:
    values = {"steps": 1, "optimizer": {"learning_rate": 0.5}}
    config = Train.parse(values, {"optimizer.learning_rate": 2.0, "steps": 3})
    assert (config.steps, config.optimizer.learning_rate) == (3, 2.0)
    assert values["optimizer"] == {"learning_rate": 0.5}
    assert merge_overrides({}, {"a.b.c": 1}) == {"a": {"b": {"c": 1}}}
    assert Train.parse(config.to_dict()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "'steps' is required"),
        ({"steps": 0}, r"steps = 0: .*greater than or equal to 1"),
        ({"steps": 1, "setps": 2}, r"unknown field 'setps' \(did you mean 'steps'\?\)"),
        (
            {"steps": 1, "optimizer": {"learning_rat": 1}},
            r"'optimizer.learning_rat' \(did you mean 'learning_rate'\?\)",
        ),
        ({"steps": 1, "optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate = nan"),
        ({"steps": 1, "optimizer": 3}, "optimizer = 3"),
    ],
)
def test_mistakes_are_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Train.parse(values)


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Train(steps=1).steps = 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-3", 1e-3), ("1E4", 1e4), ("true", True), ("[1, a]", [1, "a"]), ("text", "text"), ("null", None),
     ("v1.2.3", "v1.2.3"), ("{", "{"), ("runs/life", "runs/life"), ("", None)],
)  # fmt: skip
def test_scalars_read_as_yaml_would(text: str, value: object) -> None:
    assert parse_scalar(text) == value


@pytest.mark.parametrize(
    ("content", "message"), [(b"a: [", "not valid YAML"), (b"- a", "holds a list"), (b"\xff\xfe\x00", "cannot read")]
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_yaml(file)
    assert str(file) in str(caught.value)
    file.write_bytes(b"")
    assert load_yaml(file) == {}
