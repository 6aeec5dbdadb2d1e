"""A tokenizer that reads every text as plain text, made from one as it is stored. Knows the data, computes no token.

Text must not become a special token. The library leaves special tokens alone when asked to, but that is not enough
where they are also entries of the vocabulary which a text can reach: every piece of a Unigram model, every word of a
byte-pair model that takes known words whole. These are renamed to what no text is cut into.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_kind(spec: Mapping[str, Any]) -> str:
    """`BPE`, `Unigram`, `WordPiece` or `WordLevel`; old files do not say it."""
    model = spec.get("model") or {}
    if "type" in model:
        return str(model["type"])
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece"


def plain_spec(spec: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of `tokenizer.json` for encoding plain text.

    Nothing is put around a text, cut off or filled up: callers decide.

    Returns:
        The changed content, and the new names of vocabulary entries with what they stand for.
    """
    bare = {**spec, "post_processor": None, "truncation": None, "padding": None}
    model, added = spec.get("model"), spec.get("added_tokens") or ()
    kind = model_kind(spec)
    if not isinstance(model, Mapping) or (kind == "BPE" and not model.get("ignore_merges")):
        return bare, {}
    special = {t["content"] for t in added if t.get("special")} - {model.get("unk_token")}
    if special and kind == "BPE":  # what merges read or write keeps its name
        for merge in model.get("merges") or ():
            parts = merge.split(" ") if isinstance(merge, str) else merge
            special -= {*parts, "".join(parts)}
    vocab = model.get("vocab") or {}
    texts = [entry[0] for entry in vocab] if isinstance(vocab, list) else vocab
    # A space is in no piece of text that reaches a model: it was cut at, or written as another character.
    names = {text: f" {number}" for number, text in enumerate(t for t in texts if t in special)}
    if not names:
        return bare, {}
    if isinstance(vocab, list):
        renamed: Any = [[names.get(text, text), score] for text, score in vocab]
    else:
        renamed = {names.get(text, text): i for text, i in vocab.items()}
    bare["model"] = {**model, "vocab": renamed}
    # Listed under their own names, they would get new ids.
    bare["added_tokens"] = [t for t in added if t["content"] not in names]
    return bare, {name: text for text, name in names.items()}


def without_prefix(spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same tokenizer for text inside a text, or None where that makes no difference.

    `Metaspace` with the scheme `first` puts a space before a whole text, not before what follows a special token.
    """
    changed = _never(spec.get("pre_tokenizer"))
    return None if changed == spec.get("pre_tokenizer") else {**spec, "pre_tokenizer": changed}


def _never(step: Any) -> Any:
    if not isinstance(step, Mapping):
        return step
    if step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first":
        return {**step, "prepend_scheme": "never", "add_prefix_space": False}
    inner = {"pretokenizers": [_never(s) for s in step["pretokenizers"]]} if "pretokenizers" in step else {}
    return {**step, **inner}
