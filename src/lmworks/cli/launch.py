"""`lmworks launch torchrun|slurm|kubernetes`: a recipe's training step on other machines. Starts nothing itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lmworks.cli.fields import Flag, flags, overrides
from lmworks.cli.training_step import ARGUMENTS, mesh_of, training_step
from lmworks.core.progress import say

_OF_CLUSTERS = {"memory", "shared_folder"}
_OWN = {
    "torchrun": {"head"},
    "slurm": {*_OF_CLUSTERS, "time_limit", "partition", "setup"},
    "kubernetes": {*_OF_CLUSTERS, "image", "claim", "namespace"},
}
"""Fields that one launcher reads and not all."""


def launch_command(name: str) -> click.Command:
    """The command of the launcher called `name`, such as `launch slurm`."""
    from lmworks.parallel.launch import LaunchConfig

    launcher = name.rpartition(" ")[2]
    of_others = set().union(*_OWN.values()) - _OWN[launcher]
    known = [flag for flag in flags(LaunchConfig) if flag.path not in of_others]

    def run(recipe: Path, words: tuple[str, ...], smoke: bool, kind: str = "jobset", **given: Any) -> None:
        _launch(launcher, recipe, words, smoke, kind, known, given)

    kinds = click.Option(
        ["--kind"], type=click.Choice(["jobset", "pytorchjob"]), default="jobset", show_default=True,
        help="Which of Kubernetes' controllers starts the pods.",
    )  # fmt: skip
    return click.Command(
        name=launcher,
        callback=run,
        params=[*ARGUMENTS, *([kinds] if launcher == "kubernetes" else []), *(flag.option() for flag in known)],
        help=_HELP[launcher],
    )


def _launch(
    launcher: str, path: Path, words: tuple[str, ...], smoke: bool, kind: str, known: list[Flag], given: dict[str, Any]
) -> None:
    import yaml

    from lmworks.parallel import launch

    config = launch.LaunchConfig.parse({}, overrides(known, given))
    recipe, step, stage, stage_config = training_step(path, words, smoke=smoke)
    train: Any = getattr(stage_config, "train", None)
    launch.require_mesh(config, mesh_of(stage_config), train.rows_per_step)
    folder = Path(recipe.folder) / "launch"
    file = folder / f"{step.name}.yaml"
    job = launch.Job(
        launch.job_name(recipe.name, step.name), "lmworks", (*stage.name.split(), "--config", file.as_posix())
    )
    texts = {
        "torchrun": lambda: launch.torchrun_line(job, config),
        "slurm": lambda: launch.slurm_script(job, config),
        "jobset": lambda: launch.jobset_manifest(job, config),
        "pytorchjob": lambda: launch.pytorchjob_manifest(job, config),
    }
    text = texts[kind if launcher == "kubernetes" else launcher]()
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(stage_config.to_dict(), sort_keys=False), encoding="utf-8")
    if launcher == "torchrun":
        say("On every host, in a folder that all of them see:" if config.max_nodes > 1 else "Here:")
        click.echo(text)
        return
    made = folder / (f"{step.name}.sbatch" if launcher == "slurm" else f"{step.name}.{kind}.yaml")
    made.write_text(text, encoding="utf-8")
    say(f"wrote {made} and {file}; start it with:")
    click.echo(f"sbatch {made}" if launcher == "slurm" else f"kubectl apply -f {made}")


_HELP = {
    "torchrun": "Print the line that starts a training step of RECIPE on one or several hosts.\n\n"
    "\b\nlmworks launch torchrun recipes/life.yaml base --processes-per-node 2 base.train.parallel.data=-1",
    "slurm": "Write a script for sbatch that runs a training step of RECIPE, and is queued again until it is done.",
    "kubernetes": "Write a manifest for kubectl that runs a training step of RECIPE.",
}
