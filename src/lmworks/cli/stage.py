"""One command per stage, made from the stage's configuration class. Knows no stage in particular."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lmworks.cli.fields import flags, overrides
from lmworks.cli.training_step import mesh_of, require_one_process
from lmworks.core.config import load_yaml
from lmworks.core.errors import ConfigError
from lmworks.pipeline.stages import STAGES, Stage

_POSITIONAL = "positional"
_YAML = (".yaml", ".yml")
DASHES = {"token_normalize_func": lambda token: token.replace("_", "-"), "max_content_width": 110}
"""`--batch_tokens` and `--batch-tokens` are the same flag."""


def stage_command(name: str, stages: Mapping[str, Stage] = STAGES) -> click.Command:
    """The command of the stage called `name`."""
    stage = stages[name]
    config_class = stage.config_class()
    known = list(flags(config_class))

    def run(config_file: Path | None, **given: Any) -> None:
        typed: str | None = given.pop(_POSITIONAL, None)
        if typed is not None and Path(typed).suffix in _YAML:
            if config_file is not None:
                raise ConfigError(f"{typed} and {config_file} are two configurations", "Give one")
            config_file, typed = Path(typed), None
        values = load_yaml(config_file) if config_file else {}
        if typed is not None:
            if not stage.argument:
                raise ConfigError(f"{typed!r} is no .yaml file", f"The fields are listed by: lmworks {name} --help")
            values[stage.argument] = typed
        try:
            config = config_class.parse(values, overrides(known, given))
        except ConfigError as error:
            raise ConfigError(error.problem, f"The fields are listed by: lmworks {name} --help") from None
        if mesh_of(config) is None:
            require_one_process(f"lmworks {name}", "stages with train.parallel share their work")
        stage.call()(config)

    # A click argument and a click option of one name would be one parameter; the argument's is set apart.
    metavar = f"[{stage.argument.upper()}|FILE.yaml]" if stage.argument else "[FILE.yaml]"
    positional = click.Argument([_POSITIONAL], required=False, metavar=metavar)
    file_option = click.Option(
        ["--config", "config_file"],
        type=click.Path(path_type=Path),
        metavar="FILE.yaml",
        help="Read fields from a YAML file first, as the argument does; flags win over it.",
    )
    return click.Command(
        name=name.rpartition(" ")[2],
        callback=run,
        params=[positional, file_option, *(flag.option() for flag in known)],
        help=stage.summary,
        context_settings=dict(DASHES),
    )
