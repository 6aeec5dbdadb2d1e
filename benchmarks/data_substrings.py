"""Exact substring deduplication: how long a gigabyte of text takes, and how much memory beside it.

The text is made of words drawn from the interpreter's own sources by Zipf's law, in documents of some 3 kB; every
twentieth holds a passage of one before it, so the least that must be found is known. One process, one core.
"""

from __future__ import annotations

import argparse
import re
import sysconfig
import time
from pathlib import Path

import numpy as np
from interleaved import finish, row
from numpy.typing import NDArray
from peers.dedup_worker import peak_memory, reset_peak

from lmworks.data.deduplication.native import operations
from lmworks.data.deduplication.substrings import repeated_runs

DOCUMENT_BYTES = 3_000
PASSAGE_BYTES = 400
BLOCK_WORDS = 2_000_000


def vocabulary() -> list[bytes]:
    """Words of the standard library's sources, the most frequent first, each with a space."""
    counts: dict[bytes, int] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for word in re.findall(rb"[A-Za-z]+", path.read_bytes()):
            counts[word] = counts.get(word, 0) + 1
    return [word + b" " for word in sorted(counts, key=lambda word: (-counts[word], word))]


def make_text(size: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """`(symbols, ends, planted)`: a text, where its documents end, and how many bytes of it are planted copies."""
    rng = np.random.default_rng(seed)
    words = vocabulary()
    lengths = np.asarray([len(word) for word in words])
    letters, starts = np.frombuffer(b"".join(words), np.uint8), np.cumsum(lengths) - lengths
    shares = 1 / np.arange(1, len(words) + 1)
    text, filled = np.empty(size, np.uint8), 0
    while filled < size:
        drawn = rng.choice(len(words), BLOCK_WORDS, p=shares / shares.sum())
        sizes = lengths[drawn]
        places = np.repeat(starts[drawn] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
        block = letters[places[: size - filled]]
        text[filled : filled + len(block)] = block
        filled += len(block)
    ends = np.append(np.arange(DOCUMENT_BYTES, size, DOCUMENT_BYTES), size).astype(np.int64)
    copied = np.arange(20, len(ends) - 1, 20)
    for number in copied:
        source = int(rng.integers(0, number)) * DOCUMENT_BYTES + 100
        target = number * DOCUMENT_BYTES + 1000
        text[target : target + PASSAGE_BYTES] = text[source : source + PASSAGE_BYTES]
    return text, ends, len(copied) * PASSAGE_BYTES


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="16 MB, under a minute")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--least", type=int, nargs="*", default=[100, 200], help="shortest repetitions, bytes")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    chosen = parser.parse_args()
    size = 16_000_000 if chosen.quick else chosen.megabytes * 1_000_000
    text, ends, planted = make_text(size)
    operations()
    rows = []
    for least in chosen.least:
        reset_peak()
        began, cpu_began = time.perf_counter(), time.process_time()
        spans = repeated_runs(text, ends, least)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        peak = peak_memory()
        found = int((spans[:, 1] - spans[:, 0]).sum())
        made = row(f"{size // 1_000_000} MB, repetitions of {least} bytes", [size / seconds / 1e6], "MB/s", {}, None)
        rows.append(
            made | {
                "seconds": round(seconds, 1), "processor_seconds": round(cpu_seconds, 1),
                "peak_memory_per_byte_of_text": round(peak / size, 2),
                "planted_bytes": planted, "found_bytes": found, "spans": len(spans),
            }
        )  # fmt: skip
        print(rows[-1])
    finish("data_substrings", rows, save=chosen.save)


if __name__ == "__main__":
    main()
