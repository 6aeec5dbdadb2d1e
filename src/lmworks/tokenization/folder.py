"""Hugging Face tokenizer folders, old and new, read and written. Knows the files, not what is computed from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmworks.core.errors import TokenizerError
from lmworks.tokenization.definition import TokenizerDefinition, added_token, token_text
from lmworks.tokenization.legacy import byte_level_bpe, class_name, word_piece
from lmworks.tokenization.sentencepiece import FILES as SENTENCEPIECE
from lmworks.tokenization.sentencepiece import sentencepiece_spec

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
MODEL = "config.json"
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
FURTHER_ROLES = ("sep_token", "cls_token", "mask_token")


def read_folder(folder: Path) -> TokenizerDefinition:
    """Read a tokenizer folder; only `tokenizer.json` is required, or the files that came before it.

    The chat template is taken from `chat_template.jinja`, else from `tokenizer_config.json`, where a list
    of named templates means the one called `default`.

    Raises:
        TokenizerError: a file is missing or is not the JSON it should be.
    """
    config = {**_read_optional(folder / SPECIAL_TOKENS), **_read_optional(folder / CONFIG)}
    spec = _with_roles(_read_spec(folder, config), config)
    in_config = config.pop("chat_template", None)
    if isinstance(in_config, list):
        named = {t.get("name"): t.get("template") for t in in_config if isinstance(t, dict)}
        in_config = named.get("default")
    template = _read_text(folder / TEMPLATE) if (folder / TEMPLATE).is_file() else in_config
    if template is not None and not isinstance(template, str):
        raise TokenizerError(
            f"{folder / CONFIG}: chat_template is a {type(template).__name__}, not text", "Fix the file"
        )
    ends = folder / (GENERATION if (folder / GENERATION).is_file() else MODEL)
    return TokenizerDefinition(spec, config, template, _eos_ids(ends))


def write_folder(definition: TokenizerDefinition, folder: Path) -> None:
    """Write the files that `read_folder` and the `transformers` library read.

    `generation_config.json` belongs to the model: it is written only where there is none and the
    tokenizer knows of several ends of a generation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **definition.config}
    _write_json(folder / TOKENIZER, definition.spec)
    _write_json(folder / CONFIG, config)
    roles = {role: text for role in (*ROLES, *FURTHER_ROLES) if (text := token_text(config.get(role))) is not None}
    _write_json(folder / SPECIAL_TOKENS, roles)
    if definition.chat_template is not None:
        (folder / TEMPLATE).write_text(definition.chat_template, encoding="utf-8")
    else:
        (folder / TEMPLATE).unlink(missing_ok=True)
    if len(definition.eos_token_ids) > 1 and not (folder / GENERATION).exists():
        _write_json(folder / GENERATION, {"eos_token_id": list(definition.eos_token_ids)})


def _read_spec(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The content of `tokenizer.json`, or what older files say; `config` then learns their special tokens."""
    if (folder / TOKENIZER).is_file():
        return _read_json(folder / TOKENIZER)
    name = class_name(config, _read_optional(folder / MODEL))
    pieces = [folder / file for file in SENTENCEPIECE if (folder / file).is_file()]
    if pieces:
        spec = sentencepiece_spec(pieces[0], name, config)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        spec = byte_level_bpe(folder, name, config)
    elif (folder / "vocab.txt").is_file():
        spec = word_piece(folder, name, config)
    else:
        raise TokenizerError(f"{folder} holds no {TOKENIZER}", "Give a folder with a tokenizer or a .gguf file")
    listed = {t["content"] for t in spec["added_tokens"]}
    more = {int(i): t for i, t in config.pop("added_tokens_decoder", {}).items()}
    more |= {i: {"content": text} for text, i in _read_optional(folder / "added_tokens.json").items() if i not in more}
    for i, flags in sorted(more.items()):
        if flags["content"] not in listed:
            spec["added_tokens"].append({**added_token(i, flags["content"]), **flags})
    return spec


def _with_roles(spec: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Special tokens that only the configuration calls so, marked in `tokenizer.json`."""
    model, added = spec.get("model") or {}, spec.get("added_tokens") or []
    vocab = model.get("vocab") or {}
    if isinstance(vocab, list):
        vocab = {entry[0]: i for i, entry in enumerate(vocab)}
    named = dict.fromkeys(token_text(config.get(role)) for role in (*ROLES, *FURTHER_ROLES))
    listed = {t["content"] for t in added}
    more = [
        added_token(vocab[text], text) for text in named if text is not None and text not in listed and text in vocab
    ]
    return {**spec, "added_tokens": [*added, *more]} if more else spec


def _eos_ids(file: Path) -> tuple[int, ...]:
    value = _read_optional(file).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) for i in ids):
        raise TokenizerError(
            f"{file}: eos_token_id = {value!r} is neither a token id nor a list of them", "Fix the file"
        )
    return tuple(ids)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read {file}: {error}", "Restore the file") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(file))
    except ValueError as error:
        raise TokenizerError(f"{file} is damaged: {error}", "Restore the file or make the tokenizer anew") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{file} holds a {type(value).__name__}, not an object", "Restore the file")
    return value


def _read_optional(file: Path) -> dict[str, Any]:
    return _read_json(file) if file.is_file() else {}


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
