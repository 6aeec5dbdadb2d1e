"""All that is cut out of the texts that stay: repeated lines, paragraphs and runs, as a configuration asks.

Each is found in the texts as they came and the union is cut, so the outcome does not depend on which was first. Of what
`first` keeps, the earliest copy stays whole unless another rule takes it. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from lmworks.data.deduplication.fingerprints import DedupConfig
from lmworks.data.deduplication.pieces import PieceKind, Pieces, chosen, find_pieces, repeated
from lmworks.data.deduplication.substrings import Spans, repeated_substrings

_TEXTS_AT_ONCE = 1024


def repeated_parts(texts: Iterable[str], config: DedupConfig) -> Spans:
    """Spans to be cut, apart from each other, by the fields of `config` that name lines, paragraphs and substrings.

    Lines and paragraphs take 32 bytes each; the texts themselves are held only where substrings are asked for.

    Args:
        texts: read once, in the order in which first copies stay.
        config: `lines`, `paragraphs`, `least_characters`, `least_copies`, `substring_bytes`.
    """
    kinds: dict[PieceKind, list[Pieces]] = {}
    if config.lines != "all":
        kinds["line"] = []
    if config.paragraphs != "all":
        kinds["paragraph"] = []
    held: list[str] = []
    count = 0
    for some in _batches(texts):
        for kind, found in kinds.items():
            pieces = find_pieces(some, kind, config.least_characters)
            spans = pieces.spans
            found.append(Pieces(pieces.keys, Spans(spans.texts + count, spans.begins, spans.ends)))
        count += len(some)
        held += some if config.substring_bytes is not None else ()
    parts = []
    for kind, found in kinds.items():
        if found:
            copies = config.lines if kind == "line" else config.paragraphs
            keys = np.concatenate([pieces.keys for pieces in found])
            parts.append(chosen(_joined([p.spans for p in found]), repeated(keys, copies, config.least_copies)))
    if config.substring_bytes is not None:
        parts.append(repeated_substrings(held, config.substring_bytes))
    return union(*parts)


def union(*parts: Spans) -> Spans:
    """Spans that cover what any of the given ones covers; those that touch become one."""
    spans = _joined(parts)
    order = np.lexsort((spans.begins, spans.texts))
    texts, begins, ends = spans.texts[order], spans.begins[order], spans.ends[order]
    # Ends grow from text to text once each text has its own stretch of one long axis.
    shift = texts * (int(ends.max(initial=0)) + 1)
    reach = np.maximum.accumulate(ends + shift)
    first = np.ones(len(texts), np.bool_)
    first[1:] = (begins + shift)[1:] > reach[:-1]
    last = np.ones(len(texts), np.bool_)
    last[:-1] = first[1:]
    return Spans(texts[first], begins[first], (reach - shift)[last])


def _joined(parts: Iterable[Spans]) -> Spans:
    columns = [(part.texts, part.begins, part.ends) for part in parts] or [(np.empty(0, np.int64),) * 3]
    texts, begins, ends = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Spans(texts, begins, ends)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    waiting = iter(texts)
    while some := list(islice(waiting, _TEXTS_AT_ONCE)):
        yield some
