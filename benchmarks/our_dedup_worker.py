"""A contestant: our deduplication, from texts to the ones that are kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from interleaved import answer_lines
from peers.dedup_worker import peak_memory, reset_peak, texts_of

from lmworks.data.deduplication.fingerprints import DedupConfig, fingerprint
from lmworks.data.deduplication.groups import choose, find_groups

CONFIG = DedupConfig(keep="first")


def main() -> None:
    """Answer lines of JSON."""
    fingerprint(["warm up"], CONFIG)
    answer_lines(_answer)


def _answer(case: dict[str, Any]) -> dict[str, float]:
    texts = texts_of(Path(case["file"]))
    before = reset_peak()
    began = time.process_time()
    prints = fingerprint(texts, CONFIG)
    hashed = time.process_time()
    kept, _ = choose(find_groups(prints, CONFIG), prints, CONFIG)
    ended = time.process_time()
    return {
        "rate": len(texts) / (ended - began), "memory": (peak_memory() - before) / 1e6, "kept": int(kept.sum()),
        "grouping_seconds": ended - hashed,
    }  # fmt: skip


if __name__ == "__main__":
    main()
