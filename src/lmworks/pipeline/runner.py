"""Run a recipe's steps one after another, keeping what has not changed.

One process, one step at a time: a step that resumes (training) does so by itself, a finished one is skipped.
Knows no stage's meaning.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lmworks.core.config import Config, nearest
from lmworks.core.errors import LMWorksError, RecipeError, RunInProgressError
from lmworks.core.progress import say
from lmworks.pipeline.freshness import Decision, decide
from lmworks.pipeline.recipe import Recipe, Step, resolve_steps
from lmworks.pipeline.stages import STAGES, Stage

Service = Callable[[Stage, Config], None]


@dataclass(frozen=True)
class PlannedStep:
    """One step with what will be done about it."""

    step: Step
    stage: Stage
    config: Config
    decision: Decision

    @property
    def output(self) -> Path | None:
        """The folder the step makes, if it makes one."""
        return Path(self.config.to_dict()["output"]) if self.stage.makes_artifact else None


def call_stage(stage: Stage, config: Config) -> None:
    """Run a stage that serves until it is stopped, in this process; Ctrl-C is its normal end."""
    try:
        stage.call()(config)
    except KeyboardInterrupt:
        say("Stopped.")


class Runner:
    """Plans and runs one recipe.

    Args:
        recipe: the recipe.
        path: its file, for messages.
        start: make this step and all after it anew; earlier outputs are taken as they stand.
        only: make this step alone anew.
        stages: the stage table.
        service: how a stage without an artifact is run.

    Raises:
        RecipeError: naming recipe file, step and field.
    """

    def __init__(
        self,
        recipe: Recipe,
        path: Path | str,
        *,
        start: str | None = None,
        only: str | None = None,
        stages: Mapping[str, Stage] = STAGES,
        service: Service = call_stage,
    ) -> None:
        self.recipe, self.path, self.service = recipe, path, service
        self.steps = resolve_steps(recipe, path, stages)
        names = [step.name for step, _, _ in self.steps]
        for option, name in (("--from", start), ("--only", only)):
            if name is not None and name not in names:
                raise RecipeError(f"{path}: {option} {name!r} names no step{nearest(name, names)}", "Name a step")
        first = names.index(start) if start else 0
        self._forced = {only} if only else set(names[first:]) if start else set()
        self._wanted = {only} if only else set(names[first:])

    def plan(self) -> list[PlannedStep]:
        """What would be done now, without doing it."""
        remade: dict[Path, str] = {}
        planned = []
        for step, stage, config in self.steps:
            item = PlannedStep(step, stage, config, self._decide(step, stage, config, remade))
            if item.decision.run and item.output is not None:
                remade[item.output.resolve()] = step.name
            planned.append(item)
        return planned

    def run(self) -> None:
        """Run what has to be run.

        Raises:
            RunInProgressError: another process runs a recipe in the same folder.
            LMWorksError: a step failed; a note names the step. Finished steps are kept.
        """
        began, folder = time.monotonic(), self.recipe.folder
        if self.recipe.title:
            say(self.recipe.title)
        services = []
        with locked(folder):
            for number, (step, stage, config) in enumerate(self.steps, 1):
                decision = self._decide(step, stage, config, {})
                head = f"[{number}/{len(self.steps)}] {step.name} ({stage.name})"
                if not stage.makes_artifact:
                    services += [(step, stage, config)] if decision.run else []
                elif not decision.run:
                    say(f"{head}: {decision.reason}, kept")
                else:
                    say(f"{head}: {decision.reason}")
                    started = time.monotonic()
                    with self._named(step):
                        stage.call()(config)
                    say(f"    made {config.to_dict()['output']} in {duration(time.monotonic() - started)}")
        say(f"Recipe {self.recipe.name} ready in {duration(time.monotonic() - began)}.")
        for line in self.recipe.next_steps if services else ():
            say(line.replace("${folder}", str(folder)))
        for step, stage, config in services:  # the folder is free again while they serve
            with self._named(step):
                self.service(stage, config)

    def _decide(self, step: Step, stage: Stage, config: Config, remade: Mapping[Path, str]) -> Decision:
        if step.name not in self._wanted:
            return Decision(False, "not asked for")
        if step.name in self._forced and stage.makes_artifact:
            return Decision(True, "asked for")
        return decide(stage, config, remade)

    @contextmanager
    def _named(self, step: Step) -> Iterator[None]:
        """Name the step in whatever goes wrong inside the block."""
        try:
            yield
        except LMWorksError as error:
            error.add_note(f"In step {step.name!r} ({step.stage}) of {self.path}; finished steps are kept.")
            raise
        except KeyboardInterrupt:
            say(f"Stopped in step {step.name!r}. Finished steps are kept; run the same command again to go on.")
            raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system frees it when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunInProgressError(
                f"another run is at work in {folder}", "Wait for it, stop it, or give another folder=PATH"
            ) from None
        yield


def duration(seconds: float) -> str:
    """`4.2 s` or `3 min 05 s`."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
