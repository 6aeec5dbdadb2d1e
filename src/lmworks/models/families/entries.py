"""A `config.json` as a table of entries, each readable both ways: theirs into our configuration, ours into theirs.

A family lists its entries in reading order; an entry may look at what earlier ones have put into the draft, which is
our configuration as nested dictionaries. Knows no family.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lmworks.core.errors import ConfigError
from lmworks.models.families.hf_config import ACTIVATIONS, REQUIRED, Fields, one_or_list, token_ids
from lmworks.models.slots import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    YarnScaling,
)

Draft = dict[str, Any]
"""A configuration as nested dictionaries; dotted paths reach into it."""


class Entry(Protocol):
    """One line of a family's table."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """Take keys of `config.json` and put ours into the draft."""
        ...

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """The inverse: from a complete configuration into `config.json`."""
        ...


def get(draft: Draft, path: str, default: Any = None) -> Any:
    """What stands at a dotted path; `default` where the path leads nowhere."""
    node: Any = draft
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node


def put(draft: Draft, path: str, value: Any) -> None:
    """Set a dotted path."""
    *parents, leaf = path.split(".")
    for part in parents:
        draft = draft.setdefault(part, {})
    draft[leaf] = value


@dataclass(frozen=True)
class Field:
    """A key of theirs that is one of our fields."""

    hf: str
    ours: str
    """Dotted path; several, separated by spaces, when one key of theirs decides about more than one field."""
    default: Any = REQUIRED
    """For an absent or null key; a function is called with the draft."""
    load: Callable[[Any], Any] = lambda value: value
    save: Callable[[Any], Any] = lambda value: value

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        value = fields.take(self.hf, None if callable(self.default) else self.default)
        value = self.default(draft) if value is None and callable(self.default) else self.load(value)
        for path in self.ours.split():
            put(draft, path, value)

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        hf[self.hf] = self.save(get(draft, self.ours.split()[0]))


@dataclass(frozen=True)
class Count(Field):
    """A positive integer that later entries compute with."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        default = None if callable(self.default) else self.default
        value = fields.count(self.hf, default)
        value = self.default(draft) if value is None and callable(self.default) else value
        for path in self.ours.split():
            put(draft, path, value)


@dataclass(frozen=True)
class Constant:
    """A field of ours that this family always has so."""

    ours: str
    value: Any

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        put(draft, self.ours, self.value(draft) if callable(self.value) else self.value)

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """Nothing: the family's name says it."""


@dataclass(frozen=True)
class Only:
    """A key of theirs of which one value is supported."""

    hf: str
    allowed: tuple[Any, ...]
    why: str
    written: Any = None
    """Written where not None."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        fields.only(self.hf, *self.allowed, why=self.why)

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        if self.written is not None:
            hf[self.hf] = self.written


@dataclass(frozen=True)
class Written:
    """Keys that readers of the format want and that do not change what is computed here."""

    values: dict[str, Any] = field(hash=False)

    def read(self, fields: Fields, draft: Draft) -> None:
        """Nothing but to have seen them."""
        for key in self.values:
            fields.take(key, None)

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        hf.update(self.values)


@dataclass(frozen=True)
class ActivationField:
    """The name of an activation function."""

    hf: str
    ours: str
    default: str

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        put(draft, self.ours, fields.activation(self.hf, self.default))

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`: the family's own spelling where it means this function, else the first one that does."""
        name = get(draft, self.ours)
        theirs = [self.default, *ACTIVATIONS]
        hf[self.hf] = next(spelling for spelling in theirs if ACTIVATIONS[spelling] == name)


@dataclass(frozen=True)
class SpecialTokens:
    """Beginning and end of text."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        draft["bos_token_id"] = fields.take("bos_token_id", None)
        draft["eos_token_ids"] = token_ids(fields.take("eos_token_id", None))

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        hf["bos_token_id"] = draft["bos_token_id"]
        hf["eos_token_id"] = one_or_list(tuple(draft["eos_token_ids"]))


SCALINGS = {
    "linear": LinearScaling,
    "dynamic": DynamicScaling,
    "yarn": YarnScaling,
    "llama3": Llama3Scaling,
    "longrope": LongRopeScaling,
    "su": LongRopeScaling,  # its first name
}
"""Hugging Face's `rope_type` to ours."""


@dataclass(frozen=True)
class Rotary:
    """Rotary settings in either spelling: `rope_parameters`, or `rope_theta` with `rope_scaling`.

    Readers of version 4 of transformers overlook the first, version 5 prefers it, so both are written; where both are
    read they have to agree.
    """

    theta: float = 10_000.0
    partial: float = 1.0
    interleaved: bool = False
    ours: str = "positions"

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        new, old = fields.take("rope_parameters", None), fields.take("rope_scaling", None)
        theta = fields.take("rope_theta", None)
        partial = fields.take("partial_rotary_factor", None)
        for name, value in (("rope_parameters", new), ("rope_scaling", old)):
            if value is not None and not isinstance(value, dict):
                raise ConfigError(f"config.json: {name} = {value!r} is not a mapping", "Write it as an object, or null")
        outer = {"rope_theta": theta or self.theta, "partial_rotary_factor": partial or self.partial}
        readings = []
        if new is not None:
            readings.append(self.settings({**outer, **new}, fields, draft))
        if old is not None or theta is not None or new is None:
            readings.append(self.settings({**outer, **(old or {})}, fields, draft))
        if len(readings) == 2 and readings[0] != readings[1]:
            raise ConfigError(
                f"config.json contradicts itself: rope_parameters say {readings[0]}, "
                f"rope_theta and rope_scaling say {readings[1]}",
                "Keep one of the two spellings",
            )
        put(draft, self.ours, readings[0])

    def settings(self, values: dict[str, Any], fields: Fields, draft: Draft) -> dict[str, Any]:
        """`RotaryPositions` from one mapping of theirs."""
        kind = values.get("rope_type", values.get("type", "default"))
        own = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
        scaling: dict[str, Any] | None = None
        if kind != "default":
            if kind not in SCALINGS:
                raise ConfigError(
                    f"config.json: rope_type {kind!r} is not supported", f"Known: default, {', '.join(SCALINGS)}"
                )
            known = SCALINGS[kind].model_fields
            scaling = {k: v for k, v in values.items() if k in known and v is not None}
            scaling["rope_type"] = known["rope_type"].default
            if "original_max_position_embeddings" in known:
                top = fields.take("original_max_position_embeddings", None)
                fallback = None if kind == "llama3" else top or draft["max_position_embeddings"]
                original = scaling.get("original_max_position_embeddings", fallback)
                scaling |= {} if original is None else {"original_max_position_embeddings": original}
            required = [k for k, f in known.items() if f.is_required() or (kind == "llama3" and k.endswith("factor"))]
            required += ["original_max_position_embeddings"] * (kind == "llama3")
            if missing := [k for k in required if k not in scaling]:
                raise ConfigError(f"config.json: {kind} RoPE scaling lacks {', '.join(missing)}", "Add them")
            if unread := sorted(set(values) - set(known) - set(own)):
                warnings.warn(
                    f"config.json: {', '.join(unread)} of RoPE have no effect here", UserWarning, stacklevel=2
                )
        return {
            "kind": "rope",
            "rope_theta": values["rope_theta"],
            "partial_rotary_factor": values["partial_rotary_factor"],
            "interleaved": self.interleaved,
            "rope_scaling": scaling,
        }

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        positions = get(draft, self.ours)
        if positions["kind"] != "rope":
            raise ConfigError(
                f"this family has rotary positions; the model has {positions['kind']!r}", "Choose another family"
            )
        scaling = {k: v for k, v in (positions["rope_scaling"] or {}).items() if v is not None}
        outer = {"rope_theta": positions["rope_theta"]}
        if positions["partial_rotary_factor"] != 1.0 or self.partial != 1.0:
            outer["partial_rotary_factor"] = positions["partial_rotary_factor"]
        hf |= outer | {
            "rope_parameters": {"rope_type": "default"} | outer | scaling,
            "rope_scaling": scaling or None,
        }


def tiled(letters: Sequence[str]) -> str:
    """The shortest pattern that gives these letters when tiled; empty when all are alike."""
    for size in range(1, len(letters) + 1):
        if all(letter == letters[i % size] for i, letter in enumerate(letters)):
            return "" if size == 1 else "".join(letters[:size])
    return ""


def letters(draft: Draft, stack: str) -> list[str]:
    """The pattern's letter of each layer of a complete configuration; "" where there is no pattern."""
    pattern, count = get(draft, f"{stack}.pattern") or [""], get(draft, f"{stack}.num_hidden_layers")
    return [pattern[i % len(pattern)] for i in range(count)]
