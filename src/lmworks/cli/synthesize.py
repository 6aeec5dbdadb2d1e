"""`lmworks data synthesize`: new rows for tuning through a model. Knows no method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lmworks.cli.fields import flags, overrides
from lmworks.cli.stage import DASHES
from lmworks.core.config import load_yaml


def command(name: str) -> click.Command:
    """The command, its flags made from the configuration."""
    from lmworks.data.synthesis.synthesize import SynthesizeConfig, synthesize

    known = list(flags(SynthesizeConfig))

    def run(config_file: Path | None, model: Path | None, **given: Any) -> None:
        values = load_yaml(config_file) if config_file else {}
        config = SynthesizeConfig.parse(values, overrides(known, given))
        generator, identity = None, ""
        if model is not None:
            from lmworks.core.lineage import content_hash
            from lmworks.engine import LLM

            generator, identity = LLM(model), f"{model.name}@{content_hash(model)[:12]}"
        manifest = synthesize(config, generator, identity)
        counts = ", ".join(f"{value} {key}" for key, value in manifest.metrics.items())
        click.echo(f"{config.output}: {counts}")
        for failure in manifest.notes["failed"]:
            click.echo(failure, err=True)

    kind: Any = click.Path(path_type=Path)
    options = [
        click.Option(["--config", "config_file"], type=kind, metavar="FILE.yaml", help="Read fields from it first."),
        click.Option(["--model"], type=kind, help="Model folder or GGUF file that generates."),
    ]
    return click.Command(
        name=name.rpartition(" ")[2],
        callback=run,
        params=[*options, *(flag.option() for flag in known)],
        help="Make new rows for tuning of given ones, each with its lineage. A run that was killed goes on.",
        context_settings=dict(DASHES),
    )
