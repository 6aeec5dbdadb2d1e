"""SentencePiece's own files (`tokenizer.model`, `spiece.model`) as the content of `tokenizer.json`. Computes no token.

The file is a protocol buffer of three parts: pieces with scores, how they were trained, how text is normalized. It is
read directly; the few fields used have not changed since 2018. How a family orders ids and frames texts is not in the
file, so only families known here are converted.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmworks.core.errors import TokenizerError
from lmworks.tokenization.definition import added_token, template
from lmworks.tokenization.legacy import REMEDY

FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
MARK = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Types of pieces."""
UNIGRAM, BPE = 1, 2
"""Types of models."""
_LLAMA = ("llama", "code_llama", "codellama", "mistral", "mixtral", "phi3")
_T5 = ("t5", "mt5", "umt5", "switch_transformers")
_XLM_R = ("xlm_roberta", "xlmroberta")


@dataclass(frozen=True)
class PieceModel:
    """What SentencePiece computes tokens from."""

    pieces: tuple[tuple[str, float, int], ...]
    """Text, score, type."""
    kind: int = UNIGRAM
    byte_fallback: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True


def sentencepiece_spec(file: Path, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Convert a SentencePiece file; missing roles are put into `config`.

    Args:
        file: the model.
        name: the tokenizer's class, such as `t5`.
        config: `tokenizer_config.json`.

    Raises:
        TokenizerError: the file is damaged, or the family's arrangement of ids is not known.
    """
    if name not in (*_LLAMA, *_T5, *_XLM_R):
        known = ", ".join((*_LLAMA, *_T5, *_XLM_R))
        raise TokenizerError(f"{file}: how {name!r} models arrange their ids is not known (known: {known})", REMEDY)
    model = _read(file)
    pieces, types = [(text, score) for text, score, _ in model.pieces], [kind for *_, kind in model.pieces]
    own = {text for (text, _), kind in zip(pieces, types, strict=True) if kind == USER_DEFINED}
    if any(MARK in text for text in own) or (own and name not in _LLAMA):
        rule = "which is converted for Llama models alone, and without spaces in them"
        raise TokenizerError(f"{file}: it defines {sorted(own)[:3]} as whole tokens, {rule}", REMEDY)
    special = {text for (text, _), kind in zip(pieces, types, strict=True) if kind in (CONTROL, UNKNOWN)}
    unknown = pieces[types.index(UNKNOWN)][0] if UNKNOWN in types else "<unk>"
    if name in _T5:  # sentinels follow, the last one first
        names = [f"<extra_id_{i}>" for i in reversed(range(config.get("extra_ids", 100 if name == "t5" else 0)))]
        pieces += [(text, 0.0) for text in names if text not in {text for text, _ in pieces}]
        special |= set(names)
        roles, before, after = {"eos_token": "</s>", "unk_token": unknown, "pad_token": "<pad>"}, [], ["</s>"]
    elif name in _XLM_R:  # fairseq's order
        pieces = [(t, 0.0) for t in ("<s>", "<pad>", "</s>", "<unk>")] + pieces[3:] + [("<mask>", 0.0)]
        special, unknown = {"<s>", "<pad>", "</s>", "<unk>", "<mask>"}, "<unk>"
        roles = {f"{r}_token": t for r, t in zip(("bos", "eos", "cls", "sep"), ("<s>", "</s>") * 2, strict=True)}
        roles |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
        before, after = ["<s>"], ["</s>"]
    else:
        roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": unknown}
        before = ["<s>"] if config.setdefault("add_bos_token", True) else []
        after = ["</s>"] if config.setdefault("add_eos_token", False) else []
    vocab = {text: i for i, (text, _) in enumerate(pieces)}
    if missing := {*roles.values()} - {*vocab}:
        raise TokenizerError(f"{file}: {sorted(missing)} are not among the pieces of this {name} model", REMEDY)
    config |= {role: text for role, text in roles.items() if config.get(role) is None}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the family's own class would cut text its own way again
    first_only = name in _LLAMA and config.get("legacy") is False
    return {
        "version": "1.0",
        "added_tokens": [added_token(vocab[t], t, t in special) for t, _ in pieces if t in special | own],
        **text_steps(model, first_only),
        "post_processor": template(before, after, vocab),
        "model": bpe(model, pieces, unknown) if model.kind == BPE else {
            "type": "Unigram", "unk_id": vocab[unknown], "vocab": [list(piece) for piece in pieces],
            "byte_fallback": model.byte_fallback,
        },
    }  # fmt: skip


def text_steps(model: PieceModel, first_only: bool) -> dict[str, Any]:
    """Normalization, cut and decoding. SentencePiece sees a text as one run of characters, spaces written as marks."""
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        encoded = base64.b64encode(model.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if model.remove_extra_whitespaces:
        steps += [
            {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""},  # other white space stays
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]
    metaspace = {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "never", "split": False}
    metaspace |= {"prepend_scheme": "first"} if model.add_dummy_prefix else {}
    if not first_only:
        steps += [{"type": "Prepend", "prepend": MARK}] if model.add_dummy_prefix else []
        steps += [{"type": "Replace", "pattern": {"String": " "}, "content": MARK}]
    decoders = [
        {"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.add_dummy_prefix else []),
    ]  # fmt: skip
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": metaspace if first_only else None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def bpe(model: PieceModel, pieces: Sequence[tuple[str, float]], unknown: str) -> dict[str, Any]:
    """The file lists what merging leads to, the best first: every pair of pieces that leads there is a merge."""
    vocab = {text: i for i, (text, _) in enumerate(pieces)}
    mergeable = sorted((-score, i, text) for i, (text, score, kind) in enumerate(model.pieces) if kind == NORMAL)
    merges = [
        [text[:cut], text[cut:]]
        for *_, text in mergeable
        for cut in range(1, len(text))
        if text[:cut] in vocab and text[cut:] in vocab
    ]
    return {
        "type": "BPE", "vocab": vocab, "merges": merges, "unk_token": unknown, "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
    }  # fmt: skip


def _read(file: Path) -> PieceModel:
    try:
        whole = _fields(file.read_bytes())
        pieces = []
        for part in whole.get(1, ()):
            piece = _fields(part)
            score = struct.unpack("<f", piece[2][-1])[0] if 2 in piece else 0.0
            pieces.append((piece[1][-1].decode(), score, piece[3][-1] if 3 in piece else NORMAL))
        trained, normalized = (_fields(whole[number][-1]) if number in whole else {} for number in (2, 3))
        if not pieces:
            raise ValueError("it lists no pieces")
    except (OSError, ValueError, LookupError, AttributeError, TypeError, struct.error) as error:
        raise TokenizerError(f"{file} is not a SentencePiece model: {error}", "Restore the file") from None
    kind = trained[3][-1] if 3 in trained else UNIGRAM
    if kind not in (UNIGRAM, BPE):
        raise TokenizerError(f"{file}: model type {kind} is not converted (known: Unigram, BPE)", REMEDY)
    if trained.get(24, [0])[-1]:
        raise TokenizerError(f"{file}: its pieces end with a space where others begin with one", REMEDY)
    return PieceModel(
        tuple(pieces),
        kind,
        byte_fallback=bool(trained.get(35, [0])[-1]),
        charsmap=normalized.get(2, [b""])[-1],
        add_dummy_prefix=bool(normalized.get(3, [1])[-1]),
        remove_extra_whitespaces=bool(normalized.get(4, [1])[-1]),
    )


def _fields(data: bytes) -> Mapping[int, list[Any]]:
    """The fields of a protocol buffer by number: integers, or raw bytes."""
    found: dict[int, list[Any]] = {}
    for number, value in _entries(data):
        found.setdefault(number, []).append(value)
    return found


def _entries(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"it ends inside a field at byte {at}")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer in groups of seven bits, the lowest first; and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError(f"an integer of more than 64 bits at byte {at}")
