"""Contestants: near-duplicates by datatrove, datasketch and rensa, from texts to the ones that are kept.

python dedup_worker.py datatrove|datasketch|rensa      # 5-grams of words, 14 bands of 8 rows, as ours

All three are given the same words (a regular expression over the folded text); datatrove's own tokenizer is slower.
None checks its candidates against a threshold here, which spares them work.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NGRAM, BANDS, ROWS = 5, 14, 8
WORDS = re.compile(r"\w+")
AT_ONCE = 1000


def reset_peak() -> int:
    """Forget the highest memory of this process; returns what it has now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> int:
    """The highest memory of this process since `reset_peak`, in bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    assert found is not None, "Linux tells it"
    return int(found[1]) * 1024


def texts_of(file: Path) -> list[str]:
    """The texts of a case, pickled as lists one after another."""
    texts: list[str] = []
    size = file.stat().st_size
    with file.open("rb") as source:
        while source.tell() < size:
            texts += pickle.load(source)
    return texts


def ngrams(text: str) -> list[str]:
    """Strings of `NGRAM` words."""
    words = WORDS.findall(text.casefold())
    return list(map(" ".join, zip(*(words[offset:] for offset in range(NGRAM)), strict=False))) or [" ".join(words)]


def rensa(texts: Sequence[str]) -> int:
    """Rows that meet no other, by its matrices and its one-shot query, its fastest way."""
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=0.7, num_perm=BANDS * ROWS, num_bands=BANDS)
    kept = 0
    for begin in range(0, len(texts), AT_ONCE):
        sets = [ngrams(text) for text in texts[begin : begin + AT_ONCE]]
        matrix = RMinHash.digest_matrix_from_token_sets(sets, BANDS * ROWS, 1)
        kept += len(sets) - sum(index.insert_matrix_and_query_duplicate_flags(matrix, start_key=begin))
    return kept


def datasketch(texts: Sequence[str]) -> int:
    """Texts that meet none before them."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(params=(BANDS, ROWS), num_perm=BANDS * ROWS)
    blank = MinHash(num_perm=BANDS * ROWS)
    kept = 0
    for number, text in enumerate(texts):
        made = blank.copy()
        made.update_batch([gram.encode() for gram in ngrams(text)])
        kept += not index.query(made)
        index.insert(number, made)
    return kept


def datatrove(texts: Sequence[str]) -> int:
    """Its four steps one after another, in this process, on files in memory where /dev/shm is."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):
        """A regular expression; it asks for no other package."""

        def word_tokenize(self, text: str) -> list[str]:
            """Of a text that was folded before."""
            return WORDS.findall(text)

        def sent_tokenize(self, text: str) -> list[str]:
            """Never asked for."""
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            """Never asked for."""
            return [(0, len(text))]

    config = MinhashConfig(n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=ROWS)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").exists() else None) as root:

        def documents() -> Iterator[Any]:
            return (Document(text=text, id=str(number)) for number, text in enumerate(texts))

        MinhashDedupSignature(f"{root}/signatures", config=config, language=Words()).run(documents())
        for bucket in range(BANDS):
            MinhashDedupBuckets(f"{root}/signatures", f"{root}/buckets", config=config).run(None, bucket, BANDS)
        MinhashDedupCluster(f"{root}/buckets", f"{root}/removed", config=config).run(None, 0, 1)
        return sum(1 for _ in MinhashDedupFilter(f"{root}/removed").run(documents()))


def main() -> None:
    """Answer lines of JSON."""
    work = {"rensa": rensa, "datasketch": datasketch, "datatrove": datatrove}[sys.argv[1]]
    work(["some words to warm up with, more than five of them", "and another text of seven words there"])
    print("{}", flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        texts = texts_of(Path(case["file"]))
        before = reset_peak()
        began = time.process_time()
        kept = work(texts)
        seconds = time.process_time() - began
        answer = {"rate": len(texts) / seconds, "memory": (peak_memory() - before) / 1e6, "kept": kept}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
