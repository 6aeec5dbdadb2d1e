"""A tokenizer from a GGUF file's metadata: byte-level BPE here, pieces and word pieces in `gguf_pieces`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmworks.core.errors import TokenizerError
from lmworks.core.gguf import open_gguf
from lmworks.tokenization.definition import TokenizerDefinition, added_token
from lmworks.tokenization.gguf_pieces import PIECE_MODELS, piece_spec
from lmworks.tokenization.pretokenizers import BYTE_LEVEL, pre_tokenizer

CONTROL, USER_DEFINED = 3, 4
ID_KEYS = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding",
    "cls_token": "cls", "sep_token": "seperator", "mask_token": "mask",
}  # fmt: skip
"""Roles and the keys of their ids, misspelled as the format has them."""
END_KEYS = ("eos", "eot", "eom")
"""Tokens that end a document, a turn or a message."""
WHOLE_WORDS_FIRST = {"llama-bpe", "llama3"}
"""Vocabularies that hold words which no sequence of merges reaches."""


def read_gguf(file: Path) -> TokenizerDefinition:
    """Build the tokenizer that a GGUF file describes.

    Raises:
        TokenizerError: the metadata is missing, inconsistent, or of a kind that is not supported.
        CheckpointError: the file is not a readable GGUF file.
    """
    return from_metadata(open_gguf(file).metadata, str(file))


def from_metadata(metadata: Mapping[str, Any], name: str) -> TokenizerDefinition:
    """Build a tokenizer from GGUF key-value pairs.

    Args:
        metadata: keys such as `tokenizer.ggml.tokens`.
        name: how errors call the file.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", *PIECE_MODELS):
        known = ", ".join(map(repr, ("gpt2", *PIECE_MODELS)))
        raise TokenizerError(
            f"{name}: tokenizer.ggml.model = {kind!r} is not supported (known: {known})", "Use another file"
        )
    tokens = _strings(metadata, "tokens", name)
    types = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if len(types) != len(tokens):
        raise TokenizerError(f"{name}: {len(types)} token types for {len(tokens)} tokens", "The file is damaged")
    config = _roles(metadata, tokens, name)
    if kind == "gpt2":
        spec = _byte_level(metadata, tokens, types, name)
        config["add_bos_token"] = metadata.get("tokenizer.ggml.add_bos_token", _pre(metadata) in WHOLE_WORDS_FIRST)
    else:
        spec = piece_spec(metadata, tokens, types, config, name)
    ends = (metadata.get(f"tokenizer.ggml.{key}_token_id") for key in END_KEYS)
    return TokenizerDefinition(
        spec, config, metadata.get("tokenizer.chat_template"), tuple(dict.fromkeys(i for i in ends if i is not None))
    )


def _pre(metadata: Mapping[str, Any]) -> str:
    return str(metadata.get("tokenizer.ggml.pre", "default"))


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], name: str) -> dict[str, Any]:
    merges, pre = _strings(metadata, "merges", name), _pre(metadata)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(i, tokens[i], t == CONTROL) for i, t in enumerate(types) if t in (CONTROL, USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": pre_tokenizer(pre),
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in WHOLE_WORDS_FIRST,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def _roles(metadata: Mapping[str, Any], tokens: Sequence[str], name: str) -> dict[str, Any]:
    """The special tokens by role, as `tokenizer_config.json` has them."""
    ids = {role: metadata.get(f"tokenizer.ggml.{key}_token_id") for role, key in ID_KEYS.items()}
    for role, token_id in ids.items():
        if token_id is not None and not 0 <= token_id < len(tokens):
            raise TokenizerError(
                f"{name}: {role} id {token_id} is outside the vocabulary of {len(tokens)}", "Use another file"
            )
    return {role: tokens[i] for role, i in ids.items() if i is not None}


def _strings(metadata: Mapping[str, Any], key: str, name: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None or not len(value):
        raise TokenizerError(f"{name} has no tokenizer.ggml.{key}", "Use a GGUF file that carries its tokenizer")
    return list(value)
