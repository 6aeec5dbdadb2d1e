"""The stage `data synthesize`: new rows through the engine or an endpoint. Knows no method."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.core.lineage import Manifest, content_hash
from lmworks.core.progress import say
from lmworks.data.synthesis.config import SynthesizeConfig
from lmworks.data.synthesis.synthesize import synthesize


class SynthesizeRowsConfig(SynthesizeConfig):
    """What is made and who makes it: a model here, or one behind an endpoint; `eda` may need neither."""

    model: Path | None = None
    """Folder or GGUF file of a model that generates here."""
    url: str = ""
    """Endpoint of OpenAI's shape, such as https://host/v1; set `concurrency` too."""
    served_model: str = ""
    """The name of the endpoint's model."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Variable of the environment that holds the endpoint's key, if it wants one. The key itself is written nowhere."""


def synthesize_rows(config: SynthesizeRowsConfig) -> Manifest:
    """Make the rows and say what became of the attempts.

    Raises:
        ConfigError: a model and an endpoint are given, or an endpoint without the model's name.
        DataError: as `synthesize`.
    """
    if config.model and config.url:
        raise ConfigError(f"a model {str(config.model)!r} and an endpoint {config.url!r} are given", "Give one")
    if bool(config.url) != bool(config.served_model):
        raise ConfigError("'url' and 'served_model' belong together", "Give both or none")
    generator: Any = None
    identity, made_by = "", {}
    if config.model:
        from lmworks.engine import LLM

        generator, made_by = LLM(config.model), {"model": config.model}
        identity = f"{config.model.name}@{content_hash(config.model)[:12]}"
    elif config.url:
        from lmworks.client.http_generator import HttpGenerator

        generator = HttpGenerator(config.url, config.served_model, os.environ.get(config.api_key_variable, ""))
        identity = f"{config.served_model} at {config.url}"
    manifest = synthesize(config, generator, identity, made_by)
    say(f"{config.output}: " + ", ".join(f"{value} {name}" for name, value in manifest.metrics.items()))
    for failure in manifest.notes["failed"]:
        say(f"  {failure}")
    return manifest
