"""What a family is: data that says how one kind of model is written as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmworks.core.errors import ConfigError
from lmworks.models.config import ModelConfig
from lmworks.models.families.hf_config import HFConfig
from lmworks.models.hub.rules import Rule


@dataclass(frozen=True)
class Family:
    """One row: names, presets, `config.json` both ways, weight rules."""

    name: str
    architecture: str
    """The class name that `config.json` lists in `architectures`."""
    config_from_hf: Callable[[HFConfig], ModelConfig]
    config_to_hf: Callable[[ModelConfig], dict[str, Any]]
    weight_rules: tuple[Rule, ...]
    prefix: str
    """Begins every tensor name but the head's; files written from the bare model lack it."""
    ignored_tensors: tuple[str, ...] = ()
    """Regular expressions of tensors in old files that hold no weights, without the prefix."""
    presets: Mapping[str, ModelConfig] = field(default_factory=dict)

    def to_hf(self, config: ModelConfig) -> dict[str, Any]:
        """`config.json` of a model, checked by reading it back.

        Raises:
            ConfigError: the family's format cannot express this model.
        """
        written = self.config_to_hf(config)
        again = self.config_from_hf(written)
        if again != config:
            wanted, got = config.to_dict(), again.to_dict()
            differing = sorted(k for k in wanted if wanted[k] != got[k])
            raise ConfigError(
                f"the family {self.name!r} cannot express this model's {', '.join(differing)}: "
                f"{[wanted[k] for k in differing]} would be read back as {[got[k] for k in differing]}",
                "Choose another family or change these fields",
            )
        return written
