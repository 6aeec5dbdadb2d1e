"""A larger vocabulary for a trained tokenizer: words added as they are, or further merges learned from texts.

Old ids stay. A text that holds nothing new is cut as before; elsewhere a new token stands exactly where its pieces
stood, which `pieces` remembers so that a model can begin with the mean of what it knew (arXiv:2407.05841 compares
such beginnings). Knows no model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmworks.core.errors import TokenizerError
from lmworks.tokenization.definition import TokenizerDefinition, added_token
from lmworks.tokenization.plain_text import model_kind
from lmworks.tokenization.reference_bpe import Pair, Word, learn_merges
from lmworks.tokenization.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACES = ("Ġ", "▁", " ")
"""How tokens that begin a word begin: as bytes, by SentencePiece's mark, as they are."""


@dataclass(frozen=True)
class Extension:
    """A tokenizer with more tokens."""

    tokenizer: Tokenizer
    pieces: Mapping[int, tuple[int, ...]]
    """The old ids that each new one stands for."""


def add_tokens(tokenizer: Tokenizer, tokens: Sequence[str], special: bool = False) -> Extension:
    """Add tokens as they are written; texts that hold one are cut there first.

    Args:
        tokenizer: to extend; not changed.
        tokens: those that are in the vocabulary already are left out.
        special: no text becomes such a token, only a chat template's markers do.

    Raises:
        TokenizerError: a token is empty or holds half a surrogate pair.
    """
    if "" in tokens:
        raise TokenizerError("a token is empty", "Leave it out")
    new = [token for token in dict.fromkeys(tokens) if tokenizer.token_id(token) is None]
    first = tokenizer.vocab_size
    pieces = {first + n: tuple(tokenizer.encode(token)) for n, token in enumerate(new)}
    entries = [added_token(first + n, token, special) for n, token in enumerate(new)]
    added = [*(tokenizer.definition.spec.get("added_tokens") or ()), *entries]
    return _extended(tokenizer, {"added_tokens": added}, {e["content"]: e["id"] for e in entries}, pieces)


def add_merges(tokenizer: Tokenizer, texts: Iterable[str], num_tokens: int, min_frequency: int = 2) -> Extension:
    """Go on with the training of a byte-pair vocabulary on other texts.

    Merges are appended, so that they act only on what the old ones leave, and never cross a cut or a space.

    Args:
        tokenizer: to extend; not changed.
        texts: of the language or domain that it serves badly.
        num_tokens: at most.
        min_frequency: a pair that is rarer in the texts is not merged.

    Raises:
        TokenizerError: the vocabulary is not of byte pairs.
    """
    spec = tokenizer.definition.spec
    model: dict[str, Any] = dict(spec["model"])
    if model_kind(spec) != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise TokenizerError(
            f"a {model_kind(spec)} vocabulary learns no further merges; only byte-pair encoding without marks "
            "inside words does",
            "Give the new tokens by name",
        )
    names = {i: token for token, i in model["vocab"].items() if not _BYTE.fullmatch(token)}
    for entry in spec.get("added_tokens") or ():
        names.pop(entry["id"], None)
    first, taken = tokenizer.vocab_size, set(model["vocab"])
    pieces: dict[int, tuple[int, ...]] = {}

    def allowed(pair: Pair) -> bool:
        left, right = names.get(pair[0]), names.get(pair[1])
        if left is None or right is None or left + right in taken:
            return False
        return not right.startswith(_SPACES) or not left.strip("".join(_SPACES))

    def learned(pair: Pair, new: int) -> None:
        names[new] = names[pair[0]] + names[pair[1]]
        taken.add(names[new])
        pieces[new] = tuple(old for part in pair for old in pieces.get(part, (part,)))

    merges = learn_merges(_words(tokenizer, texts), num_tokens, first, min_frequency, allowed, learned)
    # Old files write a merge as one string; a list can also hold tokens with spaces in them.
    old = [m.split(" ") if isinstance(m, str) else list(m) for m in model["merges"]]
    model["merges"] = old + [[names[a], names[b]] for a, b in merges]
    return _extended(tokenizer, {"model": model}, {names[i]: i for i in pieces}, pieces)


def _words(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[Word]:
    """What the tokenizer makes of each word, and how often it occurs."""
    counts: Counter[Word] = Counter()
    for text in texts:
        counts.update(tokenizer.encode_words(text))
    return counts


def _extended(
    tokenizer: Tokenizer, changes: Mapping[str, Any], new: Mapping[str, int], pieces: Mapping[int, tuple[int, ...]]
) -> Extension:
    definition = tokenizer.definition
    spec = {**definition.spec, **changes}
    model = dict(spec["model"])
    if isinstance(model.get("vocab"), Mapping):
        # Ids of added tokens are read from the vocabulary where it has them; else they are counted behind its end,
        # which has moved.
        listed = {t["content"]: t["id"] for t in definition.spec.get("added_tokens") or ()}
        model["vocab"] = {**model["vocab"], **listed, **new}
        spec["model"] = model
    extended = Tokenizer(
        TokenizerDefinition(spec, definition.config, definition.chat_template, tokenizer.eos_token_ids)
    )
    wrong = [token for token, i in new.items() if extended.token_id(token) != i]
    if wrong:
        raise TokenizerError(f"the vocabulary does not take the tokens {wrong}", "Leave them out")
    return Extension(extended, dict(pieces))
