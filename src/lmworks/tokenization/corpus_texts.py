"""The texts of a corpus as a tokenizer is trained on them: one at a time, and no more than a number of bytes.

What a trainer keeps grows with the different words it has seen, so bounding the bytes bounds its memory. Knows no
tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from lmworks.core.errors import DataError


def spread_evenly(lines: Iterable[bytes], total_bytes: int, sample_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Lines from all over a stream, together about as many bytes as asked, and their numbers from 1.

    A line is taken when the bytes taken so far are no more than its share of the bytes seen so far, so that memory
    and decisions need nothing but two counters.

    Args:
        lines: of a file, or of any stream.
        total_bytes: of all lines.
        sample_bytes: wanted; all lines are given where they are no more than this.
    """
    seen = taken = 0
    for number, line in enumerate(lines, 1):
        if total_bytes <= sample_bytes or taken * total_bytes <= seen * sample_bytes:
            taken += len(line)
            yield number, line
        seen += len(line)


def read_texts(file: Path, sample_bytes: int | None = None) -> Iterator[str]:
    """The `text` of each row of a JSONL file, or of rows from all over it with about `sample_bytes` bytes.

    Raises:
        DataError: a row is not a JSON object with a text.
    """
    size = file.stat().st_size
    with file.open("rb") as lines:
        for number, line in spread_evenly(lines, size, size if sample_bytes is None else sample_bytes):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
                text.encode()
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                problem = f"{file}, line {number} is not a JSON object with a `text` of valid Unicode: {error}"
                raise DataError(problem, "Prepare the corpus anew") from None
            yield text
