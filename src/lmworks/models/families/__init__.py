"""Model families as data: presets, `config.json` both ways, weight rules. Adding one is adding a row.

No family has modules of its own; `models.build` builds every one of them from its configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmworks.core.config import nearest
from lmworks.core.errors import ConfigError
from lmworks.core.registry import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmworks.models.families.family import Family

FAMILIES = {
    "gpt2": "lmworks.models.families.gpt2:GPT2",
    "llama": "lmworks.models.families.llama:LLAMA",
    "mistral": "lmworks.models.families.llama:MISTRAL",
    "qwen2": "lmworks.models.families.llama:QWEN2",
    "qwen3": "lmworks.models.families.llama:QWEN3",
}
"""Family name, which is Hugging Face's `model_type`, to its row."""


def family_named(name: str) -> Family:
    """The row called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in FAMILIES:
        raise ConfigError(f"unknown model family {name!r}{nearest(name, list(FAMILIES))}", "Choose a known family")
    row: Family = resolve(FAMILIES[name])
    return row


def family_of(hf: Mapping[str, Any]) -> Family:
    """The row that reads a `config.json`, by its `model_type` or else its `architectures`.

    Raises:
        ConfigError: no row reads it.
    """
    model_type, architectures = hf.get("model_type"), hf.get("architectures") or []
    if model_type is not None:
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            raise ConfigError(
                f"config.json: model_type {model_type!r} is not supported{nearest(str(model_type), list(FAMILIES))}",
                "Use a model of a supported family",
            )
        return family_named(model_type)
    for name in FAMILIES:
        if any(a in family_named(name).architectures for a in architectures):
            return family_named(name)
    raise ConfigError(
        f"config.json has no model_type and no known architecture ({architectures})", 'Add "model_type" to it'
    )
