"""Published models by name, over all families."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from lmworks.core.errors import ConfigError
from lmworks.models.config import ModelConfig
from lmworks.models.families import FAMILIES, family_named


def preset_names() -> Mapping[str, str]:
    """Every preset with its family, families in alphabetical order."""
    return {preset: name for name in FAMILIES for preset in family_named(name).hf_presets}


def preset_named(name: str) -> ModelConfig:
    """The configuration of a preset such as `llama-3-8b`.

    Raises:
        ConfigError: there is none.
    """
    names = preset_names()
    if name not in names:
        close = difflib.get_close_matches(name.lower(), names, n=1)
        raise ConfigError(
            f"no preset is called {name!r}" + (f" (did you mean {close[0]!r}?)" if close else ""),
            "`lmworks model list` shows all presets",
        )
    return family_named(names[name]).presets[name]
