"""Texts, or pairs of texts, framed, cut to a length and filled up to one: rows for what takes rectangles.

The project itself packs tokens and never pads; this is for those who hand batches to a model elsewhere, and for long
texts in overlapping windows. Meanings and names are those of `transformers`. Knows no tensor and no model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tokenizers

from lmworks.core.errors import TokenizerError
from lmworks.tokenization.definition import template, token_text
from lmworks.tokenization.tokenizer import Tokenizer

Side = Literal["right", "left"]


@dataclass(frozen=True)
class PaddedBatch:
    """Rows of tokens, of one length each where they were padded."""

    input_ids: list[list[int]]
    attention_mask: list[list[int]]
    """1 for tokens, 0 for padding."""
    token_type_ids: list[list[int]]
    """1 for the second text of a pair, by the tokenizer's template."""
    special_tokens_mask: list[list[int]]
    """1 for what frames a text, and for padding."""
    offsets: list[list[tuple[int, int]]]
    """Where a token stands in its text, in characters; `(0, 0)` for one that stands in none."""
    samples: list[int]
    """The number of the text that a row is of: with `overflow`, a long one gives several."""


def encode_padded(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    add_special_tokens: bool = True,
    max_length: int | None = None,
    truncation: Literal["longest_first", "only_first", "only_second"] = "longest_first",
    truncation_side: Side = "right",
    stride: int = 0,
    overflow: bool = False,
    padding: Literal["longest", "max_length"] | None = "longest",
    padding_side: Side = "right",
    pad_to_multiple_of: int = 1,
) -> PaddedBatch:
    """Encode texts as rows. Special tokens spelled in them are plain text.

    Args:
        tokenizer: needs a `pad_token` if anything is padded.
        texts: each a row.
        pairs: what follows each text in its row, such as the passage after a question.
        add_special_tokens: frame texts as the model was trained on them.
        max_length: tokens of a row at most, its frame included; None cuts nothing.
        truncation: which text of a pair gives way.
        truncation_side: which end of it.
        stride: tokens that a row has in common with the one before, of the same text.
        overflow: what was cut off makes further rows.
        padding: to the longest row, or to `max_length`; None leaves rows as they are.
        padding_side: left for models that go on writing.
        pad_to_multiple_of: rows are padded further, to a length that this divides.

    Raises:
        TokenizerError: the arguments contradict each other, or there is no padding token.
    """
    if pairs is not None and len(pairs) != len(texts):
        raise TokenizerError(f"{len(texts)} texts cannot be paired with {len(pairs)}", "Give as many of both")
    if padding == "max_length" and max_length is None:
        raise TokenizerError("padding to max_length needs one", "Give max_length, or pad to the longest row")
    if padding is not None and max_length is not None and max_length % pad_to_multiple_of:
        raise TokenizerError(
            f"max_length = {max_length} is no multiple of {pad_to_multiple_of}, which rows are padded to", "Make it one"
        )
    if truncation == "only_second" and pairs is None:
        raise TokenizerError("there is no second text to be cut", "Give pairs, or cut the first")
    framer = _framer(tokenizer)
    frame = framer.num_special_tokens_to_add(pairs is not None) if add_special_tokens else 0
    if max_length is not None:
        room = max_length - frame
        if room < 0 or not 0 <= stride < max(room // (1 if pairs is None else 2), 1):
            raise TokenizerError(
                f"max_length = {max_length} leaves {room} tokens beside the frame, too few for a stride of {stride}",
                "Give a larger max_length, or a smaller stride",
            )
        framer.enable_truncation(max_length, stride=stride, strategy=truncation, direction=truncation_side)
    firsts = tokenizer.encodings(texts)
    seconds = [None] * len(texts) if pairs is None else tokenizer.encodings(pairs)
    rows: list[tokenizers.Encoding] = []
    samples: list[int] = []
    for number, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
        if max_length is not None and second and truncation != "longest_first":
            stays = len(first if truncation == "only_second" else second)
            if len(first) + len(second) > room and room - stays <= stride:
                raise TokenizerError(
                    f"of text {number} and its pair, the one that is not cut has {stays} tokens, of {room} in a row",
                    "Let the longest give way, or give a larger max_length",
                )
        row = framer.post_process(first, second, add_special_tokens)
        found = [row, *(row.overflowing if overflow else ())]
        rows += found
        samples += [number] * len(found)
    if padding is not None:
        longest = max((len(row.ids) for row in rows), default=0)
        length = max_length if padding == "max_length" and max_length is not None else longest
        _pad(tokenizer, rows, -(-length // pad_to_multiple_of) * pad_to_multiple_of, padding_side)
    return PaddedBatch(
        [row.ids for row in rows], [row.attention_mask for row in rows],
        # Without a frame, nothing but the order of the texts says which is the second.
        [row.type_ids if frame else [number or 0 for number in row.sequence_ids] for row in rows],
        [row.special_tokens_mask for row in rows], [row.offsets for row in rows], samples,
    )  # fmt: skip


def _pad(tokenizer: Tokenizer, rows: Sequence[tokenizers.Encoding], length: int, side: Side) -> None:
    token = token_text(tokenizer.definition.config.get("pad_token"))
    pad_id = None if token is None else tokenizer.token_id(token)
    if pad_id is None and any(len(row.ids) < length for row in rows):
        raise TokenizerError("the tokenizer has no pad_token", "Name one in tokenizer_config.json, or do not pad")
    for row in rows:
        row.pad(length, direction=side, pad_id=pad_id or 0, pad_token=token or "")


def _framer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """What the library puts around tokens: a tokenizer without a vocabulary, cheap enough to be made for each call."""
    spec = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}
    processor = tokenizer.definition.spec.get("post_processor")
    framer = tokenizers.Tokenizer.from_str(json.dumps({**spec, "post_processor": processor}))
    opening = framer.post_process(framer.encode("")).ids
    if tokenizer.adds_bos and opening[:1] != [tokenizer.bos_token_id]:  # only the configuration says so
        bos = str(token_text(tokenizer.definition.config["bos_token"]))
        processor = template([bos], [], {bos: tokenizer.token_id(bos) or 0})
        framer = tokenizers.Tokenizer.from_str(json.dumps({**spec, "post_processor": processor}))
    return framer
