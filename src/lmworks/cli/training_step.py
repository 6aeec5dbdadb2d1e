"""What several processes can share: the step of a recipe, as `launch` and `plan` are told it, and nothing else.

Knows no launcher.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from lmworks.core.config import Config, nearest, parse_scalar
from lmworks.core.errors import ParallelError, RecipeError
from lmworks.pipeline.recipe import Recipe, Step, load_recipe, resolve_steps
from lmworks.pipeline.stages import Stage

ARGUMENTS: list[click.Parameter] = [
    click.Argument(["recipe"], type=click.Path(path_type=Path)),
    click.Argument(["words"], nargs=-1, metavar="[STEP] [STEP.FIELD=VALUE]..."),
    click.Option(["--smoke"], is_flag=True, help="The recipe's tiny sizes."),
]
"""Of a command that calls `training_step`."""


def training_step(path: Path, words: tuple[str, ...], *, smoke: bool) -> tuple[Recipe, Step, Stage, Config]:
    """Find the step that is meant; the only one that can be shared, unless named.

    Args:
        path: the recipe's file.
        words: at most one step's name, and overrides.
        smoke: with the recipe's tiny sizes.

    Raises:
        RecipeError: there is no such step, or none or several that can be shared.
    """
    overrides = dict(word.split("=", 1) for word in words if "=" in word)
    recipe = load_recipe(path, {key: parse_scalar(text) for key, text in overrides.items()}, smoke=smoke)
    steps = {step.name: (recipe, step, stage, config) for step, stage, config in resolve_steps(recipe, path)}
    names = [word for word in words if "=" not in word]
    shared = [name for name, (*_, config) in steps.items() if mesh_of(config) is not None]
    for name in names:
        if name not in steps:
            raise RecipeError(f"{path}: there is no step {name!r}{nearest(name, list(steps))}", "Name a step")
        if name not in shared:
            raise RecipeError(
                f"{path}: step {name!r} ({steps[name][2].name}) runs in one process",
                f"Steps that several share: {', '.join(shared) or 'none'}",
            )
    chosen = names or shared
    if len(chosen) != 1:
        raise RecipeError(f"{path}: {len(chosen)} steps are meant ({', '.join(chosen) or 'none'})", "Name one step")
    return steps[chosen[0]]


def mesh_of(config: Config) -> Any:
    """The `ParallelConfig` of a stage that several processes can share; None for others."""
    return getattr(getattr(config, "train", None), "parallel", None)


def require_one_process(command: str, advice: str) -> None:
    """Refuse to do the same work, into the same folder, once per process.

    Args:
        command: what cannot be shared.
        advice: what can be.

    Raises:
        ParallelError: torchrun or its like started several processes.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes not in ("", "1"):
        raise ParallelError(
            f"{command} runs in one process, and WORLD_SIZE says that {processes} were started",
            f"Start it without torchrun; {advice}",
        )
