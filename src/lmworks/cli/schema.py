"""`lmworks schema`: JSON Schema for editors. Knows no field."""

from __future__ import annotations

import json

import click

from lmworks.core.config import nearest
from lmworks.pipeline.stages import STAGES


@click.command()
@click.argument("subject", nargs=-1, required=True, metavar="recipe | STAGE")
def schema(subject: tuple[str, ...]) -> None:
    """Print the JSON Schema of recipe files, or of one stage's fields (`lmworks schema data prepare`)."""
    name = " ".join(subject)
    if name == "recipe":
        from lmworks.pipeline.schema import recipe_schema

        found = recipe_schema()
    elif name in STAGES:
        found = STAGES[name].config_class().model_json_schema()
    else:
        raise click.UsageError(f"no schema {name!r}{nearest(name, ['recipe', *STAGES])}")
    click.echo(json.dumps(found, indent=2, ensure_ascii=False))
