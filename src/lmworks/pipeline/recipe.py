"""A recipe: named steps in order, each a stage with its fields, as read from YAML.

`${corpus}` in a value stands for the output folder of the step `corpus`, `${folder}` for the recipe's folder.
Knows no stage's meaning and runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from lmworks.core.config import Config, explain, load_yaml, merge_overrides, nearest
from lmworks.core.errors import ConfigError, RecipeError
from lmworks.pipeline.stages import STAGES, Stage

StepName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_TOP = ("name", "folder", "title", "next_steps")


class Step(Config):
    """One step: a stage and the values of its configuration."""

    stage: str
    """The stage's name, such as `data prepare`."""
    name: StepName
    """What later steps call this one's output."""
    values: dict[str, Any] = Field(default_factory=dict, alias="with")
    """Fields of the stage's configuration; `output` is `<folder>/<name>` unless given."""


class Recipe(Config):
    """A story told in steps."""

    name: str
    title: str = ""
    """One line shown when the recipe starts."""
    folder: Path
    """Where every step's output goes."""
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    smoke: dict[str, Any] = Field(default_factory=dict)
    """Dotted overrides, such as `pretrain.train.steps: 20`, that make the recipe tiny (`--smoke`)."""
    next_steps: tuple[str, ...] = ()
    """Lines that tell the reader what to do before it serves; `${folder}` is the recipe's folder."""


def load_recipe(path: Path | str, overrides: Mapping[str, Any] | None = None, *, smoke: bool = False) -> Recipe:
    """Read a recipe and apply its smoke block, if asked, then `overrides` (`{"corpus.seed": 1}`).

    Raises:
        RecipeError: naming the file and what in it is wrong.
    """
    raw = load_yaml(path)
    try:
        recipe = Recipe.model_validate(raw)
        for changes in (recipe.smoke if smoke else {}, overrides or {}):
            recipe = _overridden(recipe, changes)
    except ValidationError as error:
        raise RecipeError(f"{path}: {explain(Recipe, error)}", "Mend the recipe") from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error.problem}", error.remedy) from None
    _check_names(recipe, path)
    return recipe


def _overridden(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with `step.field` and top-level overrides set."""
    names = [step.name for step in recipe.steps]
    top: dict[str, Any] = {}
    by_step: dict[str, dict[str, Any]] = {}
    for dotted, value in changes.items():
        # A step's name may itself hold dots, so the longest step name that fits is meant.
        owner = max((n for n in names if dotted.startswith(f"{n}.")), key=len, default=None)
        if owner is not None:
            by_step.setdefault(owner, {})[dotted.removeprefix(f"{owner}.")] = value
        elif dotted in _TOP:
            top[dotted] = value
        else:
            step = dotted.partition(".")[0]
            raise RecipeError(
                f"override {dotted!r} names no step{nearest(step, [*names, *_TOP])}", "Write STEP.FIELD=VALUE"
            )
    steps = [
        {"stage": s.stage, "name": s.name, "with": merge_overrides(s.values, by_step.get(s.name, {}))}
        for s in recipe.steps
    ]
    return Recipe.model_validate({**recipe.model_dump(), **top, "steps": steps})


def _check_names(recipe: Recipe, path: Path | str) -> None:
    seen = {"folder"}
    for step in recipe.steps:
        if step.name in seen:
            raise RecipeError(f"{path}: the step name {step.name!r} is used twice or reserved", "Choose another name")
        seen.add(step.name)


def _references(value: Any) -> list[str]:
    if isinstance(value, str):
        return _REFERENCE.findall(value)
    if isinstance(value, Mapping):
        return [r for item in value.values() for r in _references(item)]
    if isinstance(value, (list, tuple)):
        return [r for item in value for r in _references(item)]
    return []


def _substitute(value: Any, outputs: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: outputs[match.group(1)], value)
    if isinstance(value, Mapping):
        return {key: _substitute(item, outputs) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_substitute(item, outputs) for item in value]
    return value


def resolve_steps(
    recipe: Recipe, path: Path | str, stages: Mapping[str, Stage] = STAGES
) -> list[tuple[Step, Stage, Config]]:
    """Each step with its stage and validated configuration, in order.

    Raises:
        RecipeError: naming recipe file, step and field.
    """
    outputs = {"folder": str(recipe.folder)}
    resolved = []
    for step in recipe.steps:
        stage = stages.get(step.stage)
        if stage is None:
            raise RecipeError(
                f"{path}: step {step.name!r} has the unknown stage {step.stage!r}{nearest(step.stage, list(stages))}",
                "Name a stage that `lmworks --help` lists",
            )
        for reference in _references(step.values):
            if reference not in outputs:
                raise RecipeError(
                    f"{path}: step {step.name!r} refers to ${{{reference}}}, which no earlier step makes"
                    f"{nearest(reference, list(outputs))}",
                    "Name an earlier step that has an output",
                )
        config_class = stage.config_class()
        values = _substitute(step.values, outputs)
        if "output" in config_class.model_fields:
            values.setdefault("output", str(recipe.folder / step.name))
            outputs[step.name] = str(values["output"])
        try:
            config = config_class.parse(values)
        except ConfigError as error:
            raise RecipeError(
                f"{path}: step {step.name!r} ({step.stage}): {error.problem}",
                f"The fields are listed by: lmworks {step.stage} --help",
            ) from None
        resolved.append((step, stage, config))
    return resolved
