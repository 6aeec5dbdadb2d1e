"""What a family is: data that says how one kind of model is written as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from lmworks.core.config import load_yaml
from lmworks.core.errors import ConfigError
from lmworks.models.config import ModelConfig
from lmworks.models.families.architectures import read_head, write_head
from lmworks.models.families.entries import Draft, Entry, get, put
from lmworks.models.families.hf_config import Fields, HFConfig
from lmworks.models.hub.rules import Rule, expand


@cache
def _published() -> Mapping[str, Mapping[str, HFConfig]]:
    return load_yaml(Path(__file__).with_name("presets.yaml"))


WeightRules = tuple[Rule, ...] | Callable[[ModelConfig], tuple[Rule, ...]]


@dataclass(frozen=True)
class Family:
    """One row: names, `config.json` both ways, weight rules, presets."""

    name: str
    """Hugging Face's `model_type`."""
    architectures: Mapping[str, Mapping[str, Any]]
    """Class names that `config.json` may list, each with the head it stands for; the first is the default."""
    entries: tuple[Entry, ...]
    """`config.json`, in reading order."""
    weight_rules: WeightRules
    """Of all tensors the family may have; a function where they depend on sizes."""
    spellings: Mapping[str, str] = field(default_factory=dict)
    """Other names of keys in `config.json`, each with the one that `entries` use; either is read, both are written."""
    prefix: str = ""
    """Begins every tensor name but the head's; files written from the bare model lack it."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Tensors of theirs that repeat another: alias to owner. They may be stored and must be equal then."""
    tied: tuple[str, ...] = ("lm_head.weight",)
    """Names of theirs that repeat the embedding where the two are tied."""
    ignored_tensors: tuple[str, ...] = ()
    """Regular expressions of tensors in files that hold no weights we use, without the prefix; `{num_hidden_layers}`
    stands for the number of layers."""
    legacy_names: Mapping[str, str] = field(default_factory=dict)
    """Old spellings inside names of tensors in files: regular expression to what replaces it."""
    optional: Mapping[str, str] = field(default_factory=dict)
    """Flags of ours that are false where a file lacks a tensor: dotted field to the end of its name."""
    tied_unless_stored: bool = False
    """The head is tied where a file lacks its matrix and only there, whatever `config.json` says: version 5 of
    transformers ties T5 1.1 in every `config.json`, version 4 in none."""

    @property
    def hf_presets(self) -> Mapping[str, HFConfig]:
        """Published models by name: what their `config.json` says, from `presets.yaml`."""
        return _published().get(self.name, {})

    @cached_property
    def presets(self) -> Mapping[str, ModelConfig]:
        """Published models by name."""
        return {name: self.config_from_hf(values) for name, values in self.hf_presets.items()}

    def config_from_hf(self, hf: HFConfig) -> ModelConfig:
        """Read a `config.json`.

        Raises:
            ConfigError: a required field is missing, a value is impossible, or the model needs what is not supported.
        """
        fields = Fields(self._respelled(hf))
        draft: Draft = {"family": self.name}
        try:
            for entry in self.entries:
                fields.taken.clear()
                entry.read(fields, draft)
            fields.taken.clear()
            draft["head"] = read_head(self, fields, draft)
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            given = [f"{key} = {fields.values[key]!r}" for key in fields.taken if fields.values.get(key) is not None]
            raise ConfigError(f"config.json: {' and '.join(given)} cannot be read: {error}", "Correct it") from error
        config = ModelConfig.parse(draft)
        fields.done()
        return config

    def _respelled(self, hf: HFConfig) -> HFConfig:
        """With the keys that `entries` use."""
        values = dict(hf)
        for other, key in self.spellings.items():
            if (value := values.pop(other, None)) is None:
                continue
            if values.get(key) not in (None, value):
                raise ConfigError(
                    f"config.json contradicts itself: {other} = {value!r}, {key} = {values[key]!r}", "Keep one of them"
                )
            values[key] = value
        return values

    def to_hf(self, config: ModelConfig) -> dict[str, Any]:
        """`config.json` of a model, checked by reading it back.

        Raises:
            ConfigError: the family's format cannot express this model.
        """
        draft = config.to_dict()
        written: dict[str, Any] = {"model_type": self.name}
        for entry in self.entries:
            try:
                entry.write(draft, written)
            except (KeyError, TypeError, IndexError, AttributeError, StopIteration) as error:
                where = getattr(entry, "hf", type(entry).__name__)
                raise ConfigError(
                    f"the family {self.name!r} cannot express this model: {error!r} in its entry {where}",
                    "Choose another family",
                ) from error
        written |= {other: written[key] for other, key in self.spellings.items() if key in written}
        written |= write_head(self, draft)
        try:
            again = self.config_from_hf(written)
        except ConfigError as error:
            raise ConfigError(
                f"the family {self.name!r} cannot express this model; what it writes cannot be read back: "
                f"{error.problem}",
                error.remedy,
            ) from error
        if again != config:
            changed = [f"{path} {value!r} (as {read!r})" for path, value, read in _differing(draft, again.to_dict())]
            raise ConfigError(
                f"the family {self.name!r} cannot express this model; read back would be otherwise: "
                f"{', '.join(changed)}",
                "Choose another family or change these fields",
            )
        return written

    def as_stored(self, config: ModelConfig, names: Collection[str]) -> ModelConfig:
        """The configuration as a file's tensors show it, where `config.json` cannot: see `optional`."""
        draft = config.to_dict()
        for path, end in self.optional.items():
            if get(draft, path) and not any(name.endswith(end) for name in names):
                put(draft, path, False)
        if self.tied_unless_stored and get(draft, "head.logit_multiplier") == 1.0:
            draft["tie_word_embeddings"] = not set(self.tied) & set(names)
        return ModelConfig.parse(draft)

    def rules(self, config: ModelConfig, names: Collection[str]) -> tuple[Rule, ...]:
        """The weight rules that concern our tensors `names`, one for every layer."""
        return expand(self.templates(config), names, max(stack.num_hidden_layers for stack in config.stacks))

    def templates(self, config: ModelConfig) -> tuple[Rule, ...]:
        """The weight rules as they stand, `{i}` for the layer."""
        return self.weight_rules(config) if callable(self.weight_rules) else self.weight_rules

    def ignored(self, config: ModelConfig) -> tuple[str, ...]:
        """`ignored_tensors` of a model."""
        layers = str(config.output_stack.num_hidden_layers)
        return tuple(pattern.replace("{num_hidden_layers}", layers) for pattern in self.ignored_tensors)


def _differing(wanted: Draft, got: Draft, parent: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted path and both values of every field in which two drafts differ."""
    for name, value in wanted.items():
        other = got.get(name)
        if isinstance(value, dict) and isinstance(other, dict) and value.get("kind") == other.get("kind"):
            yield from _differing(value, other, f"{parent}{name}.")
        elif value != other:
            yield f"{parent}{name}", value, other
