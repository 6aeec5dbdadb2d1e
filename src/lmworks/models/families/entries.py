"""A `config.json` as a table of entries, each readable both ways: theirs into our configuration, ours into theirs.

A family lists its entries in reading order; an entry may look at what earlier ones have put into the draft, which is
our configuration as nested dictionaries. Knows no family.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lmworks.core.config import Config
from lmworks.core.errors import ConfigError
from lmworks.models.families.hf_config import ACTIVATIONS, REQUIRED, Fields, one_or_list, token_ids
from lmworks.models.position_slots import DynamicScaling, LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling
from lmworks.models.slots import MOST
from lmworks.nn.rope import longrope_attention_factor

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
        assert isinstance(draft, dict), f"{path!r} leads below {part!r}, which holds {draft!r}"
    draft[leaf] = value


def exact_head_dim(draft: Draft, attention: str = "decoder.attention.") -> int:
    """The hidden size divided by the heads of the attention at a dotted path.

    Raises:
        ConfigError: they do not divide.
    """
    hidden_size, heads = draft["hidden_size"], get(draft, f"{attention}num_attention_heads")
    if hidden_size % heads:
        raise ConfigError(
            f"config.json: the hidden size {hidden_size} is not a multiple of the {heads} heads", "Change one of them"
        )
    return int(hidden_size // heads)


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
    nullable: bool = False
    """Null is None, which is not what an absent key means."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        if self.nullable and fields.null(self.hf):
            value = None
        else:
            value = fields.take(self.hf, None if callable(self.default) else self.default)
            value = self.default(draft) if value is None and callable(self.default) else self.load(value)
        for path in self.ours.split():
            put(draft, path, value)

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`; nothing where the model has no such field, as a head's without that head."""
        value = get(draft, self.ours.split()[0], REQUIRED)
        if value is not REQUIRED:
            hf[self.hf] = self.save(value)


@dataclass(frozen=True)
class Count(Field):
    """A positive integer that later entries compute with."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        default = None if callable(self.default) else self.default
        value = fields.count(self.hf, default)
        value = self.default(draft) if value is None and callable(self.default) else value
        for path in self.ours.split():
            if path.endswith(".num_hidden_layers") and value > MOST:  # later entries list them
                raise ConfigError(f"config.json: {self.hf} = {value!r} is more than {MOST:,}", "Correct it")
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
class Implied:
    """Keys that some writers add although other keys say the same, or no reader heeds them."""

    keys: tuple[str, ...]

    def read(self, fields: Fields, draft: Draft) -> None:
        """Nothing but to have seen them."""
        for key in self.keys:
            fields.take(key, None)

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """Nothing."""


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


SCALINGS: dict[str, type[Config]] = {
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
    """Where the file does not say."""
    partial: float | None = None
    """Share of each head that turns, where the file does not say; None: all of it turns, whatever the family."""
    interleaved: bool = False
    original: int | None = None
    """Trained context of a scaling, where the file does not say; None: `max_position_embeddings`."""
    ours: str = "positions"

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        new, old = fields.take("rope_parameters", None), fields.take("rope_scaling", None)
        theta = fields.take("rope_theta", None)
        for name, value in (("rope_parameters", new), ("rope_scaling", old)):
            if value is not None and not isinstance(value, dict):
                raise ConfigError(f"config.json: {name} = {value!r} is not a mapping", "Write it as an object, or null")
        outer = {
            "rope_theta": theta or self.theta,
            "partial_rotary_factor": fields.take("partial_rotary_factor", None) or self.partial or 1.0,
        }
        # Outside the mapping it has priority: that is where Phi-3 keeps it.
        above = fields.take("original_max_position_embeddings", None) or self.original
        inner = {} if above is None else {"original_max_position_embeddings": above}
        readings = []
        if new is not None:
            readings.append(self.settings({**outer, **new, **inner}, draft))
        if old is not None or theta is not None or new is None:
            readings.append(self.settings({**outer, **(old or {}), **inner}, draft))
        if len(readings) == 2 and readings[0] != readings[1]:
            raise ConfigError(
                f"config.json contradicts itself: rope_parameters say {readings[0]}, "
                f"rope_theta and rope_scaling say {readings[1]}",
                "Keep one of the two spellings",
            )
        put(draft, self.ours, readings[0])

    def settings(self, values: dict[str, Any], draft: Draft) -> dict[str, Any]:
        """`RotaryPositions` from one mapping of theirs."""
        kind, partial = values.get("rope_type", values.get("type", "default")), values["partial_rotary_factor"]
        if self.partial is None and partial != 1.0:
            raise ConfigError(
                f"config.json: partial_rotary_factor = {partial} is not supported: heads of this family turn as a "
                "whole", "Use a model without partial rotary embedding",
            )  # fmt: skip
        return {
            "kind": "rope",
            "rope_theta": values["rope_theta"],
            "partial_rotary_factor": partial,
            "interleaved": self.interleaved,
            "rope_scaling": None if kind == "default" else _scaling(kind, values, draft["max_position_embeddings"]),
        }

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        positions = get(draft, self.ours)
        if positions["kind"] != "rope":
            raise ConfigError(
                f"this family has rotary positions; the model has {positions['kind']!r}", "Choose another family"
            )
        scaling = {k: v for k, v in (positions["rope_scaling"] or {}).items() if v is not None}
        if scaling.get("rope_type") == "dynamic":
            del scaling["original_max_position_embeddings"]
        outer = {"rope_theta": positions["rope_theta"]}
        if self.partial is not None:
            outer["partial_rotary_factor"] = positions["partial_rotary_factor"]
        hf |= outer | {
            "rope_parameters": {"rope_type": "default"} | outer | scaling,
            "rope_scaling": scaling or None,
        }
        if scaling.get("rope_type") == "longrope":
            hf["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]


def _scaling(kind: str, values: dict[str, Any], context: int) -> dict[str, Any]:
    """One of `position_slots.RopeScaling` from a mapping of theirs; `context` is the model's maximum."""
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise ConfigError(f"config.json: rope_type {kind!r} is not supported", f"Known: default, {', '.join(SCALINGS)}")
    known = SCALINGS[kind].model_fields
    own = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
    scaling = {k: v for k, v in values.items() if k in known and v is not None}
    scaling["rope_type"] = known["rope_type"].default
    if kind == "dynamic":
        scaling["original_max_position_embeddings"] = context  # whatever the mapping says
    elif kind != "llama3" and "original_max_position_embeddings" in known:
        scaling.setdefault("original_max_position_embeddings", context)
    if scaling["rope_type"] == "longrope" and values.get("factor") is not None:
        own.add("factor")
        original = scaling["original_max_position_embeddings"]
        scaling.setdefault("attention_factor", longrope_attention_factor(values["factor"], original))
    defaulted = {name for name, f in known.items() if not f.is_required()}
    if kind == "llama3":
        defaulted = {"rope_type"}
    if missing := [name for name in known if name not in scaling and name not in defaulted]:
        raise ConfigError(f"config.json: {kind} RoPE scaling lacks {', '.join(missing)}", "Add them")
    if unread := sorted(set(values) - set(known) - own):
        warnings.warn(f"config.json: {', '.join(unread)} of RoPE have no effect here", UserWarning, stacklevel=2)
    return scaling


@dataclass(frozen=True)
class RotaryByLayerType:
    """Settings of their own for layers that see a window only, letter `S` of the pattern; see `SlidingLayers`.

    The new spelling nests both below `rope_parameters`; the old one scales the others only.
    """

    full: Rotary
    sliding: Rotary
    """Its `ours` is `decoder.layers.S.positions`."""
    theta_key: str
    """The base of layers with a window in the old spelling."""

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `Entry`."""
        nested = fields.take("rope_parameters", None) or {}
        if not isinstance(nested, dict) or set(nested) - {"full_attention", "sliding_attention"}:
            raise ConfigError(f"config.json: rope_parameters {nested!r} do not go by layer type", "Nest them by it")
        old = {key: fields.take(key, None) for key in ("rope_theta", "rope_scaling", self.theta_key)}
        full = {"rope_parameters": nested.get("full_attention"), **old}
        self.full.read(Fields(full), draft)
        sliding = {"rope_parameters": nested.get("sliding_attention"), "rope_theta": old[self.theta_key]}
        self.sliding.read(Fields(sliding), draft)

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `Entry`."""
        sliding: dict[str, Any] = {"rope_theta": self.sliding.theta, "rope_parameters": None}
        if get(draft, self.sliding.ours) is not None:
            self.sliding.write(draft, sliding)
        hf[self.theta_key] = sliding["rope_theta"]
        self.full.write(draft, hf)
        hf["rope_parameters"] = {
            "full_attention": hf["rope_parameters"],
            "sliding_attention": sliding["rope_parameters"]
            or {"rope_type": "default", "rope_theta": self.sliding.theta},
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
