"""A tokenizer as a GGUF file's metadata: the inverse of `tokenization.gguf`. Knows byte-level BPE alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import TokenizerError
from lmworks.tokenization.definition import token_text
from lmworks.tokenization.gguf import CONTROL, END_KEYS, ID_KEYS, USER_DEFINED, WHOLE_WORDS_FIRST
from lmworks.tokenization.pretokenizers import pre_tokenizer
from lmworks.tokenization.tokenizer import Tokenizer, check_compatible

_NORMAL, _UNUSED = 1, 5
_PRE_NAMES = ("gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "stablelm2")
"""`tokenizer.ggml.pre` of every cut that can be told, in a fixed order: others are synonyms."""
_OLDER_FORMS = {"add_prefix_space": False, "trim_offsets": None, "use_regex": True}
"""What a ByteLevel step means where it is silent; `trim_offsets` moves no cut."""


def gguf_metadata(tokenizer: Tokenizer, vocab_size: int | None = None) -> dict[str, Any]:
    """The key-value pairs that describe a tokenizer and its chat template to llama.cpp.

    Args:
        tokenizer: byte-level BPE, with a cut of text that GGUF has a name for.
        vocab_size: the model's embedding rows; llama.cpp wants a token for each. None: as many as there are tokens.

    Raises:
        TokenizerError: GGUF cannot express it, or it cannot belong to a model with so many rows.
    """
    if vocab_size is not None:
        check_compatible(tokenizer, vocab_size)
    spec, config = tokenizer.definition.spec, tokenizer.definition.config
    model = spec.get("model") or {}
    vocab, merges = model.get("vocab"), model.get("merges")
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") or not isinstance(vocab, Mapping) or not merges:
        raise TokenizerError(
            f"a tokenizer of type {model.get('type')!r} is not written to GGUF", "Use a byte-level BPE tokenizer"
        )
    added = {tokenizer.token_id(t["content"]): t for t in spec.get("added_tokens") or ()}
    texts = {i: text for text, i in vocab.items()} | {i: t["content"] for i, t in added.items()}
    ids = range(vocab_size or tokenizer.vocab_size)
    metadata: dict[str, Any] = {
        "model": "gpt2",
        "pre": _pre_name(spec, bool(model.get("ignore_merges"))),
        "tokens": [texts.get(i, f"[PAD{i}]") for i in ids],
        "token_type": [_token_type(added.get(i), i in texts) for i in ids],
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
    }
    for role, key in ID_KEYS.items():
        text = token_text(config.get(role))
        if text is not None and (token_id := tokenizer.token_id(text)) is not None:
            metadata[f"{key}_token_id"] = token_id
    metadata |= {f"{key}_token_id": i for key, i in zip(END_KEYS, tokenizer.eos_token_ids, strict=False)}
    metadata["add_bos_token"] = tokenizer.adds_bos
    written = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return written | ({} if tokenizer.chat_template is None else {"tokenizer.chat_template": tokenizer.chat_template})


def _token_type(added: Mapping[str, Any] | None, used: bool) -> int:
    if added is not None:
        return CONTROL if added.get("special") else USER_DEFINED
    return _NORMAL if used else _UNUSED


def _pre_name(spec: Mapping[str, Any], whole_words_first: bool) -> str:
    """The name of the cut before merging, by comparing it with all that have one."""
    normalizer = spec.get("normalizer")
    for name in _PRE_NAMES:
        same_cut = _steps(spec.get("pre_tokenizer")) == _steps(pre_tokenizer(name))
        same_text = normalizer == ({"type": "NFC"} if name == "qwen2" else None)
        if same_cut and same_text and whole_words_first == (name in WHOLE_WORDS_FIRST):
            return name
    raise TokenizerError(
        f"GGUF has no name for the way this tokenizer cuts text: normalizer {normalizer}, "
        f"pre_tokenizer {spec.get('pre_tokenizer')}",
        f"Use a tokenizer that cuts text as one of {', '.join(_PRE_NAMES)} does",
    )


def _steps(step: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A pre-tokenizer as its steps, every option spelled out."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [flat for inner in step["pretokenizers"] for flat in _steps(inner)]
    return [{**_OLDER_FORMS, **step, "trim_offsets": None} if step["type"] == "ByteLevel" else dict(step)]
