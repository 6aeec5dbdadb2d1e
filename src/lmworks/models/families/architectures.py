"""The head of a model in `config.json`: which class it names, and how many labels there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmworks.core.config import nearest
from lmworks.core.errors import ConfigError

if TYPE_CHECKING:
    from lmworks.models.families.entries import Draft
    from lmworks.models.families.family import Family
    from lmworks.models.families.hf_config import Fields

LABELED = ("sequence_classification", "token_classification")
"""Kinds of heads with `num_labels`."""


def decoder_heads(stem: str, language_model: str = "ForCausalLM") -> dict[str, Mapping[str, Any]]:
    """The classes that transformers makes of a decoder called `stem`."""
    return {
        f"{stem}{language_model}": {"kind": "causal_lm"},
        f"{stem}ForSequenceClassification": {"kind": "sequence_classification", "pooling": "last"},
        f"{stem}ForTokenClassification": {"kind": "token_classification"},
        f"{stem}Model": {"kind": "embedding", "pooling": "last"},
    }


def read_head(family: Family, fields: Fields, draft: Draft) -> dict[str, Any]:
    """The head's slot, from `architectures` and the labels; what entries have put there stays.

    Raises:
        ConfigError: the named class is none of the family's.
    """
    named = fields.take("architectures", None) or [next(iter(family.architectures))]
    known = [name for name in named if name in family.architectures]
    if not known:
        raise ConfigError(
            f"config.json: architectures {named} of model_type {family.name!r} are not supported"
            f"{nearest(str(named[0]), list(family.architectures))}",
            "Use a model with a supported head",
        )
    head = dict(family.architectures[known[0]])
    labels = fields.take("num_labels", None) or len(fields.take("id2label", None) or ()) or 2
    if head["kind"] in LABELED:
        head["num_labels"] = labels
        if head["kind"] == "sequence_classification" and labels == 1 and "dense_act" not in head:
            return {"kind": "reward", "bias": head.get("bias", False)}
    earlier = draft.get("head", {})
    return {**head, **(earlier if head["kind"] == earlier.get("kind") else {})}


def write_head(family: Family, draft: Draft) -> dict[str, Any]:
    """`architectures` and the labels.

    Raises:
        ConfigError: the family has no class with such a head.
    """
    head = draft["head"]
    kind = "sequence_classification" if head["kind"] == "reward" else head["kind"]
    for name, spec in family.architectures.items():
        if spec["kind"] == kind and all(head.get(k, v) == v for k, v in spec.items() if k != "kind"):
            labels = 1 if head["kind"] == "reward" else head.get("num_labels")
            if labels is None:
                return {"architectures": [name]}
            names = {str(i): f"LABEL_{i}" for i in range(labels)}
            return {"architectures": [name], "id2label": names, "label2id": {v: int(k) for k, v in names.items()}}
    raise ConfigError(
        f"the family {family.name!r} has no class with the head {head}",
        f"Its classes: {', '.join(family.architectures)}",
    )
