"""The head of a model in `config.json`: which class it names, what its labels are called, and its own keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmworks.core.config import nearest
from lmworks.core.errors import ConfigError

if TYPE_CHECKING:
    from lmworks.models.families.entries import Draft
    from lmworks.models.families.family import Family
    from lmworks.models.families.hf_config import Fields

LABELED = ("sequence_classification", "token_classification")
"""Kinds of heads with `num_labels`."""
EMBEDDING_HEAD = "embedding_head"
"""Our key for what no class name says: how documents become vectors. Others overlook it."""
HeadSpec = Mapping[str, Any]
"""Fields of a head's slot; a function is called with the draft."""


def decoder_heads(stem: str, language_model: str = "ForCausalLM") -> dict[str, HeadSpec]:
    """The classes that transformers makes of a decoder called `stem`."""
    return {
        f"{stem}{language_model}": {"kind": "causal_lm"},
        f"{stem}ForSequenceClassification": {"kind": "sequence_classification", "pooling": "last"},
        f"{stem}ForTokenClassification": {"kind": "token_classification"},
        f"{stem}Model": {"kind": "embedding", "pooling": "last"},
    }


def encoder_heads(
    stem: str, *, lm_act: str | Callable[[Draft], Any], classifier_act: str | Callable[[Draft], Any],
    next_sentence: bool = False, pooler: bool = False,
) -> dict[str, HeadSpec]:  # fmt: skip
    """The classes that transformers makes of an encoder called `stem`.

    Args:
        stem: begins their names.
        lm_act: activation of the masked-LM head's dense layer.
        classifier_act: activation of the dense layer before a document's labels.
        next_sentence: whether there is a class with masked LM and next sentence together.
        pooler: whether the bare model is stored with a pooler.
    """
    masked = {"kind": "masked_lm", "dense_act": lm_act}
    pair = {f"{stem}ForPreTraining": {**masked, "next_sentence": True}} if next_sentence else {}
    return {
        f"{stem}ForMaskedLM": {**masked, "next_sentence": False},
        **pair,
        f"{stem}ForSequenceClassification": {
            "kind": "sequence_classification", "pooling": "cls", "dense_act": classifier_act, "bias": True,
        },
        f"{stem}ForTokenClassification": {"kind": "token_classification", "dense_act": "none"},
        f"{stem}ForQuestionAnswering": {"kind": "question_answering"},
        f"{stem}Model": {"kind": "embedding", "pooling": "mean", "pooler": pooler},
    }  # fmt: skip


@dataclass(frozen=True)
class HeadField:
    """A key of theirs that is a field of heads of some kinds."""

    hf: str
    ours: str
    default: Any
    kinds: tuple[str, ...]

    def read(self, fields: Fields, draft: Draft) -> None:
        """See `entries.Entry`."""
        value = fields.take(self.hf, self.default)
        for kind in self.kinds:
            draft.setdefault("heads", {}).setdefault(kind, {})[self.ours] = value

    def write(self, draft: Draft, hf: dict[str, Any]) -> None:
        """See `entries.Entry`."""
        if draft["head"]["kind"] in self.kinds:
            hf[self.hf] = draft["head"][self.ours]


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
    head = _resolved(family.architectures[known[0]], draft)
    names = _label_names(fields.take("id2label", None) or {})
    count = fields.take("num_labels", None) or len(names) or 2
    embedding = fields.take(EMBEDDING_HEAD, {})
    if head["kind"] == "embedding":
        head |= embedding
    if head["kind"] in LABELED:
        head.setdefault("num_labels", count)
        if head["kind"] == "sequence_classification" and count == 1 and "dense_act" not in head:
            return {"kind": "reward", "pooling": head["pooling"], "bias": head.get("bias", False)}
        plain = names == tuple(f"LABEL_{i}" for i in range(len(names)))
        head["labels"] = names if len(names) == head["num_labels"] and not plain else ()
    earlier = draft.get("head", {})
    head |= earlier if head["kind"] == earlier.get("kind") else {}
    return head | draft.pop("heads", {}).get(head["kind"], {})


def write_head(family: Family, draft: Draft) -> dict[str, Any]:
    """`architectures` and the labels.

    Raises:
        ConfigError: the family has no class with such a head.
    """
    head = draft["head"]
    kind = "sequence_classification" if head["kind"] == "reward" else head["kind"]
    for name, unresolved in family.architectures.items():
        spec = _resolved(unresolved, draft)
        if spec["kind"] != kind:
            continue
        if kind == "embedding":
            told = {k: v for k, v in head.items() if k != "kind" and v != spec.get(k, False)}
            return {"architectures": [name]} | ({EMBEDDING_HEAD: told} if told else {})
        if all(head.get(k, v) == v for k, v in spec.items() if k != "kind"):
            labels = 1 if head["kind"] == "reward" else head.get("num_labels")
            if labels is None:
                return {"architectures": [name]}
            names = dict(enumerate(head.get("labels") or (f"LABEL_{i}" for i in range(labels))))
            return {
                "architectures": [name],
                "id2label": {str(i): label for i, label in names.items()},
                "label2id": {label: i for i, label in names.items()},
            }
    raise ConfigError(
        f"the family {family.name!r} has no class with the head {head}",
        f"Its classes: {', '.join(family.architectures)}",
    )


def _resolved(spec: HeadSpec, draft: Draft) -> dict[str, Any]:
    return {k: v(draft) if callable(v) else v for k, v in spec.items()}


def _label_names(id2label: Mapping[str, str]) -> tuple[str, ...]:
    """Names in the order of their numbers, which JSON keeps as strings.

    Raises:
        ConfigError: they are no mapping from 0, 1, ... to names.
    """
    try:
        names = {int(key): str(name) for key, name in id2label.items()}
        return tuple(names[i] for i in range(len(names)))
    except (AttributeError, KeyError, ValueError):
        raise ConfigError(
            f"config.json: id2label {id2label!r} does not number its labels from 0", "Correct it"
        ) from None
