"""What one token is as text: the `decoder` entry of `tokenizer.json`, one token at a time. Knows no vocabulary.

The `tokenizers` library decodes whole sequences. Streams and log-probabilities need the bytes of single tokens, which
the known decoders allow: a token's bytes depend on the token and on whether it is the text's first. A decoder that
looks at more (the last token, neighbors) is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

from lmworks.core.errors import TokenizerError
from lmworks.tokenization.byte_alphabet import to_bytes

Step = Callable[[str, bool], str | bytes]
"""A token's text, and whether it is the first of the sequence, to what the step makes of it; bytes are final."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " do not", " 's", " 've", " 're")
"""What a WordPiece token loses its space before; `do not` becomes `don't`."""


@dataclass(frozen=True)
class TokenDecoder:
    """Tokens to bytes."""

    steps: tuple[Step, ...]
    strip: tuple[str, int] = ("", 0)
    """A character, and how many of it a text loses at its beginning."""

    def decode(self, token: str, first: bool) -> bytes:
        """The bytes of a token, the first of its text or a later one."""
        for step in self.steps:
            piece = step(token, first)
            if isinstance(piece, bytes):
                return piece
            token = piece
        return token.encode()


def token_decoder(spec: Mapping[str, Any] | None) -> TokenDecoder:
    """Read the `decoder` entry of a `tokenizer.json`.

    Raises:
        TokenizerError: the decoder is unknown, or cannot be applied token by token.
    """
    if spec is None:
        return TokenDecoder((lambda token, first: token if first else " " + token,))
    steps: list[Step] = []
    strip, fused = ("", 0), False
    for entry in _flat(spec):
        kind = entry["type"]
        if kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and not entry["stop"] and not strip[1]:
            strip = (entry["content"], entry["start"])
        elif kind not in _STEPS or fused:
            raise TokenizerError(
                f"tokens of a {kind!r} decoder cannot be turned into text one by one (known: {', '.join(_STEPS)})",
                "Use a model whose tokenizer.json has a known decoder for generation",
            )
        else:
            steps.append(_STEPS[kind](entry))
            fused = kind == "ByteLevel"
    return TokenDecoder(tuple(steps), strip)


def _flat(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The decoders in order, each with every option spelled out as the library understands it."""
    if spec.get("type") == "Sequence":
        return [flat for inner in spec["decoders"] for flat in _flat(inner)]
    model = {"type": "BPE", "vocab": {}, "merges": []}
    backend = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "model": model, "decoder": spec}))
    whole: dict[str, Any] = json.loads(backend.to_str())
    return [whole["decoder"]]


def _byte_level(entry: Mapping[str, Any]) -> Step:
    return lambda token, first: to_bytes(token)


def _byte_fallback(entry: Mapping[str, Any]) -> Step:
    """`<0x0A>` is a byte."""

    def step(token: str, first: bool) -> str | bytes:
        match = _BYTE.fullmatch(token)
        return bytes([int(match[1], 16)]) if match else token

    return step


def _replace(entry: Mapping[str, Any]) -> Step:
    pattern, content = entry["pattern"], entry["content"]
    if "String" not in pattern:
        raise TokenizerError(f"a decoder replaces {pattern!r}, which is not plain text", "Use another tokenizer")
    return lambda token, first: token.replace(pattern["String"], content)


def _metaspace(entry: Mapping[str, Any]) -> Step:
    """SentencePiece's mark is a space, except where encoding put it: before the first word."""
    mark = entry["replacement"]
    at_start = " " if entry["prepend_scheme"] == "never" else ""
    return lambda token, first: token.replace(mark, at_start if first else " ")


def _word_piece(entry: Mapping[str, Any]) -> Step:
    """A token begins a word, before which stands a space, or continues one."""
    prefix, clean_up = entry["prefix"], entry["cleanup"]

    def step(token: str, first: bool) -> str:
        if not first:
            token = token.removeprefix(prefix) if token.startswith(prefix) else " " + token
        for found in _CLEAN_UP if clean_up else ():
            token = token.replace(found, " don't" if found == " do not" else found.strip())
        return token

    return step


_STEPS: dict[str, Callable[[Mapping[str, Any]], Step]] = {
    "ByteLevel": _byte_level,
    "ByteFallback": _byte_fallback,
    "Replace": _replace,
    "Metaspace": _metaspace,
    "WordPiece": _word_piece,
}
