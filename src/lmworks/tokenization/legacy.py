"""Folders from before `tokenizer.json`: `vocab.json` with `merges.txt`, or `vocab.txt`. Knows files, computes no token.

What these files leave open, how text is cut and framed, follows from the class of the tokenizer. It is read from
`tokenizer_config.json` or `config.json`; a class that is not known is an error, for a guess would give other tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmworks.core.errors import TokenizerError
from lmworks.tokenization.definition import added_token, template, token_text
from lmworks.tokenization.pretokenizers import BYTE_LEVEL, pre_tokenizer

REMEDY = (
    "Write its tokenizer.json once with the transformers library: AutoTokenizer.from_pretrained(FOLDER)"
    ".save_pretrained(FOLDER)"
)
_END = "<|endoftext|>"
_GPT2 = {"bos_token": _END, "eos_token": _END, "unk_token": _END}
_FRAMED = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>",
    "sep_token": "</s>", "mask_token": "<mask>",
}  # fmt: skip
_BERT = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "pad", "cls", "sep", "mask")}
_BYTE_LEVEL_ROLES = {
    **dict.fromkeys(("gpt2", "gptj", "gpt_neo", "codegen", "phi"), _GPT2),
    **dict.fromkeys(("roberta", "bart", "longformer", "led"), _FRAMED),
    "opt": {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"},
    "qwen2": {"eos_token": _END, "pad_token": _END},
}
"""The special tokens of byte-level classes, where the folder does not name its own."""
_WORD_PIECE_ROLES = {
    **dict.fromkeys(("bert", "distilbert", "electra", "mobilebert", "lxmert"), _BERT),
    "mpnet": {**_FRAMED, "unk_token": "[UNK]"},
}


def class_name(config: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """The tokenizer's class as the family's `model_type`, such as `gpt2`; empty where no file names it.

    Args:
        config: `tokenizer_config.json`.
        model: `config.json`.
    """
    named = str(config.get("tokenizer_class") or model.get("tokenizer_class") or "")
    named = named.removesuffix("Fast").removesuffix("Tokenizer")
    return (named or str(model.get("model_type") or "")).lower().replace("-", "_")


def byte_level_bpe(folder: Path, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """`vocab.json` and `merges.txt` as the content of `tokenizer.json`; missing roles are put into `config`.

    Raises:
        TokenizerError: the class is unknown, or a file is damaged.
    """
    try:
        vocab: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{folder}: vocab.json or merges.txt is damaged: {error}", "Restore them") from None
    if not name:  # as OpenAI published GPT-2
        name = "gpt2" if _END in vocab else "roberta"
    roles = _roles(folder, name, _BYTE_LEVEL_ROLES, config, vocab)
    merges = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    cut = {**BYTE_LEVEL, "add_prefix_space": bool(config.get("add_prefix_space"))}
    processor: dict[str, Any] = {**cut, "trim_offsets": False}
    if "cls_token" in roles:
        processor = {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": cut["add_prefix_space"]}
        processor |= {part: [roles[f"{part}_token"], vocab[roles[f"{part}_token"]]] for part in ("cls", "sep")}
    elif config.setdefault("add_bos_token", name == "opt"):
        processor = template([roles["bos_token"]], [], vocab)
    return {
        "version": "1.0",
        "added_tokens": [added_token(vocab[t], t) for t in dict.fromkeys(roles.values())],
        "normalizer": {"type": "NFC"} if name == "qwen2" else None,
        "pre_tokenizer": pre_tokenizer("qwen2") if name == "qwen2" else cut,
        "post_processor": processor,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def word_piece(folder: Path, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """`vocab.txt` as the content of `tokenizer.json`; missing roles are put into `config`.

    Raises:
        TokenizerError: the class is unknown, or the file is damaged.
    """
    try:
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{folder / 'vocab.txt'} is damaged: {error}", "Restore it") from None
    vocab = {line: i for i, line in enumerate(lines)}
    roles = _roles(folder, name or "bert", _WORD_PIECE_ROLES, config, vocab)
    cut = {
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
        "strip_accents": config.get("strip_accents"),
        "lowercase": config.get("do_lower_case", True),
    }
    return word_piece_spec(vocab, roles, **cut)


def word_piece_spec(
    vocab: Mapping[str, int], roles: Mapping[str, str], *, lowercase: bool = True,
    strip_accents: bool | None = None, handle_chinese_chars: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """The content of BERT's `tokenizer.json`.

    Args:
        vocab: pieces to ids; those that continue a word begin with `##`.
        roles: special tokens, of which `cls_token`, `sep_token` and `unk_token` have a use here.
        lowercase: capitals are read as small letters.
        strip_accents: accents are dropped; None does so with `lowercase`.
        handle_chinese_chars: each Chinese character is a word.
    """
    return {
        "version": "1.0",
        "added_tokens": [added_token(vocab[t], t) for t in dict.fromkeys(roles.values())],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": handle_chinese_chars,
            "strip_accents": strip_accents,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template([roles["cls_token"]], [roles["sep_token"]], vocab),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": roles["unk_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


def _roles(
    folder: Path, name: str, known: Mapping[str, Mapping[str, str]], config: dict[str, Any], vocab: Mapping[str, int]
) -> dict[str, str]:
    """The special tokens by role; what the class says fills `config`'s gaps."""
    if name not in known:
        raise TokenizerError(
            f"{folder} has no tokenizer.json, and how a {name!r} tokenizer cuts text is not known "
            f"(known: {', '.join(known)})",
            REMEDY,
        )
    roles = {role: token_text(config.get(role)) or text for role, text in known[name].items()}
    if missing := [text for text in roles.values() if text not in vocab]:
        raise TokenizerError(f"{folder}: the special tokens {missing} are not in the vocabulary", REMEDY)
    config |= {role: text for role, text in roles.items() if config.get(role) is None}
    return roles
