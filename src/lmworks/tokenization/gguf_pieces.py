"""Vocabularies of pieces in GGUF files: SentencePiece's two models, and BERT's word pieces. Computes no token.

A GGUF file keeps what SentencePiece's own file does, under `tokenizer.ggml`; llama.cpp's defaults hold where it is
silent. Word pieces are stored with the mark on the pieces that begin a word, not on those that continue one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmworks.core.errors import TokenizerError
from lmworks.tokenization.definition import added_token, template
from lmworks.tokenization.legacy import word_piece_spec
from lmworks.tokenization.sentencepiece import (
    BPE,
    CONTROL,
    MARK,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    PieceModel,
    bpe,
    text_steps,
)

PIECE_MODELS = ("llama", "t5", "bert")
"""Values of `tokenizer.ggml.model`: BPE by score, Unigram, word pieces."""
_BYTE = 6


def piece_spec(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], config: dict[str, Any], name: str
) -> dict[str, Any]:
    """The content of `tokenizer.json`; missing roles are put into `config`.

    Args:
        metadata: the file's key-value pairs.
        tokens: texts in the order of their ids.
        types: of the tokens, as SentencePiece numbers them.
        config: special tokens by role.
        name: how errors call the file.

    Raises:
        TokenizerError: something is missing or contradictory.
    """
    if len(set(tokens)) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if token in tokens[:i])
        raise TokenizerError(f"{name}: the token {twice!r} is listed twice", "Use another file")
    if metadata["tokenizer.ggml.model"] == "bert":
        return _word_pieces(metadata, tokens, types, config, name)
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise TokenizerError(
            f"{name}: {0 if scores is None else len(scores)} scores for {len(tokens)} tokens", "Use a complete file"
        )
    unigram = metadata["tokenizer.ggml.model"] == "t5"
    charsmap = metadata.get("tokenizer.ggml.precompiled_charsmap") or []
    model = PieceModel(
        tuple(zip(tokens, map(float, scores), types, strict=True)),
        UNIGRAM if unigram else BPE,
        byte_fallback=_BYTE in types,
        charsmap=bytes(b % 256 for b in charsmap),
        add_dummy_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        remove_extra_whitespaces=bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", unigram)),
    )
    if model.add_dummy_prefix and any(t == USER_DEFINED and MARK in text for text, _, t in model.pieces):
        raise TokenizerError(
            f"{name}: it defines pieces with spaces as whole tokens, which is not read", "Use its folder"
        )
    vocab = {text: i for i, text in enumerate(tokens)}
    unknown = next((text for text, _, t in model.pieces if t == UNKNOWN), config.get("unk_token"))
    if unknown is None:
        raise TokenizerError(f"{name} names no token for what is unknown", "Use a complete file")
    config.setdefault("unk_token", unknown)
    pieces = [(text, score) for text, score, _ in model.pieces]
    before, after = (
        _frame(metadata, config, role, default) for role, default in (("bos", not unigram), ("eos", unigram))
    )
    return {
        "version": "1.0",
        "added_tokens": [_added(vocab[text], text, t) for text, _, t in model.pieces
                         if t in (CONTROL, UNKNOWN, USER_DEFINED)],
        **text_steps(model, first_only=False),
        "post_processor": template(before, after, vocab) if before or after else None,
        "model": {
            "type": "Unigram", "unk_id": vocab[unknown], "vocab": [list(piece) for piece in pieces],
            "byte_fallback": model.byte_fallback,
        } if unigram else bpe(model, pieces, unknown),
    }  # fmt: skip


def _added(token_id: int, text: str, kind: int) -> dict[str, Any]:
    """A token found as a whole; one with marks for spaces is looked for where the text has them."""
    return added_token(token_id, text, special=kind != USER_DEFINED) | {
        "normalized": kind == USER_DEFINED and MARK in text
    }


def _frame(metadata: Mapping[str, Any], config: dict[str, Any], role: str, default: bool) -> list[str]:
    """What stands before or after a text."""
    wanted = bool(metadata.get(f"tokenizer.ggml.add_{role}_token", default))
    token = config.get(f"{role}_token")
    frame = [str(token)] if wanted and token is not None else []
    config[f"add_{role}_token"] = bool(frame)
    return frame


def _word_pieces(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], config: dict[str, Any], name: str
) -> dict[str, Any]:
    """Beginnings of words have the mark here and none there, where continuations have `##`."""
    special = {text for text, t in zip(tokens, types, strict=True) if t in (CONTROL, UNKNOWN)} | set(config.values())
    texts = [
        text if text in special else text.removeprefix(MARK) if text.startswith(MARK) else f"##{text}"
        for text in tokens
    ]
    if len(set(texts)) != len(texts):
        raise TokenizerError(f"{name}: two of its word pieces read the same", "Use another file")
    former = {"cls_token": "bos_token", "sep_token": "eos_token", "unk_token": "unk_token"}  # what older files say
    roles = {role: config.get(role, config.get(old)) for role, old in former.items()}
    if missing := [role for role, text in roles.items() if text is None]:
        raise TokenizerError(f"{name} does not say which of its tokens is the {missing[0]}", "Use a complete file")
    config |= roles
    vocab = {text: i for i, text in enumerate(texts)}
    return word_piece_spec(vocab, {role: str(text) for role, text in config.items()})
