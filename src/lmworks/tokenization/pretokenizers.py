"""How text is cut before byte-pair merging, by the names GGUF files use, in `tokenizer.json` form.

Knows no vocabulary. A tokenizer whose cuts are guessed wrong still works and silently gives other tokens
than the model was trained on, so an unknown name is an error.
"""

from __future__ import annotations

from typing import Any

from lmworks.core.errors import TokenizerError

BYTE_LEVEL: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
"""GPT-2: words with their leading space, runs of digits, of punctuation, of white space; bytes as letters."""

BYTES_ONLY: dict[str, Any] = {**BYTE_LEVEL, "use_regex": False}


def gpt4_pattern(max_digits: int) -> str:
    """The cut of the GPT-4 family: case-blind contractions, a word with one leading mark, line ends apart.

    Args:
        max_digits: longest run of digits kept together; 1 gives each digit its own token.
    """
    digits = r"\p{N}" if max_digits == 1 else rf"\p{{N}}{{1,{max_digits}}}"
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def by_pattern(pattern: str) -> dict[str, Any]:
    """Cut at the matches of a regular expression, then write bytes as letters."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, BYTES_ONLY]}


_DIGITS_APART = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
}

_BY_NAME: dict[str, dict[str, Any]] = {
    # llama.cpp writes `default` when it did not recognize a tokenizer; GPT-2's cut is what such files were made with.
    "default": BYTE_LEVEL,
    "gpt-2": BYTE_LEVEL,
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "command-r": _DIGITS_APART,
    "llama-bpe": by_pattern(gpt4_pattern(3)),
    "llama3": by_pattern(gpt4_pattern(3)),
    "smaug-bpe": by_pattern(gpt4_pattern(3)),
    "dbrx": by_pattern(gpt4_pattern(3)),
    "qwen2": by_pattern(gpt4_pattern(1)),
    "stablelm2": by_pattern(gpt4_pattern(1)),
}


def pre_tokenizer(name: str) -> dict[str, Any]:
    """The `pre_tokenizer` entry of `tokenizer.json` for a GGUF `tokenizer.ggml.pre` name.

    Raises:
        TokenizerError: the name is not known.
    """
    if name not in _BY_NAME:
        raise TokenizerError(
            f"unknown pre-tokenizer {name!r} (known: {', '.join(sorted(_BY_NAME))})",
            "Use the model's Hugging Face folder, which carries its own tokenizer.json",
        )
    return _BY_NAME[name]
