"""MinHash deduplication from texts to kept ones against datatrove, datasketch and rensa, and its recall by theory.

Documents of 3 kB, of drawn words or of the interpreter's own sources, a tenth of them copies of another with 1 to 30 %
of the words replaced; the same 5-grams, bands and rows for all. Rates are of processor time of one process; memory is
what a process takes beyond the texts. A million documents are taken once, by those that need minutes for them. Then
pairs planted at ten rates of edits: how many meet in a band, how many are grouped, and what theory says of both.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import HERE, PEERS, Contestant, arguments, finish, in_turn, row, running
from planted_text import (
    WORDS_A_DOCUMENT,
    chance_of_grouping,
    chance_of_meeting,
    documents,
    edited,
    real_documents,
    vocabulary,
)

from lmworks.data.deduplication.fingerprints import DedupConfig, fingerprint
from lmworks.data.deduplication.groups import find_groups, similarity
from lmworks.data.shingles import Shingles

RATES = (0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
ALL = ["lmworks", "rensa", "datasketch", "datatrove"]
FAST = ["lmworks", "rensa"]
TEXTS_AT_ONCE = 10_000
REPEATED = 100_000
"""Larger cases are run once."""


def case(folder: Path, name: str, size: int, contestants: list[str]) -> dict[str, Any]:
    """Texts in a file, as pickled lists of some thousand, and who reads them."""
    file = folder / f"{name}-{size}.pickles"
    texts = {"drawn": documents, "real": real_documents}[name](size, seed=size)
    with file.open("wb") as sink:
        while some := list(islice(texts, TEXTS_AT_ONCE)):
            pickle.dump(some, sink)
    return {"case": f"{size:,} {name} documents", "file": str(file), "size": size, "contestants": contestants}


def recall(pairs: int, config: DedupConfig, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of planted pairs by rate of edits: found, and what theory expects at their true similarities."""
    rng = np.random.default_rng(seed)
    words = np.asarray(vocabulary(), object)
    rows = []
    for rate in RATES:
        texts = []
        for _ in range(pairs):
            drawn = rng.integers(0, len(words), WORDS_A_DOCUMENT)
            texts += [" ".join(words[drawn]), " ".join(words[edited(drawn, rate, len(words), rng)])]
        shingles = Shingles(texts)
        prints = fingerprint(texts, config)
        grams = [set(shingles.ngrams(config.ngram, n, n + 1)[0].tolist()) for n in range(len(texts))]
        true = [len(a & b) / len(a | b) for a, b in zip(grams[::2], grams[1::2], strict=True)]
        first = np.arange(0, len(texts), 2)
        met = (prints.signatures[:, first] == prints.signatures[:, first + 1]).all(axis=2).any(axis=0)
        groups = find_groups(prints, config).near
        grouped = groups[first] == groups[first + 1]
        # A planted text may only be grouped with its own original.
        wrong = int((groups[first] != first).sum() + (~np.isin(groups[first + 1], [*first, *first + 1])).sum())
        wrong += int((groups[first + 1] // 2 != first // 2).sum())
        estimate = similarity(prints.signatures, np.stack([first, first + 1]))
        bands = (config.bands, config.rows)
        made = row(f"planted pairs, {rate:.0%} of words replaced", [float(grouped.mean())], "share grouped", {}, None)
        rows.append(
            made | {
                "pairs": pairs, "jaccard": round(float(np.mean(true)), 3),
                "estimate": round(float(estimate.mean()), 3), "met": round(float(met.mean()), 3),
                "met_in_theory": round(float(np.mean([chance_of_meeting(s, *bands) for s in true])), 3),
                "grouped": round(float(grouped.mean()), 3),
                "grouped_in_theory": round(
                    float(np.mean([chance_of_grouping(s, *bands, config.threshold) for s in true])), 3
                ),
                "precision": 1.0 if not grouped.any() else round(float(grouped.sum() / (grouped.sum() + wrong)), 4),
                "grouped_above_threshold": None if not grouped.any() else round(
                    float((np.asarray(true)[grouped] >= config.threshold).mean()), 3
                ),
            }
        )  # fmt: skip
        print(rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    """Run and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--documents", type=int, default=1_000_000, help="size of the largest case")
    chosen = parser.parse_args()
    sizes = [("drawn", 1_000, ALL)] if chosen.quick else [
        ("drawn", 10_000, ALL), ("real", 10_000, ALL), ("drawn", 100_000, FAST), ("drawn", chosen.documents, FAST)
    ]  # fmt: skip
    rounds = chosen.rounds or (1 if chosen.quick else 3)
    contestants = [
        Contestant("lmworks", [sys.executable, str(HERE / "our_dedup_worker.py")]),
        *(Contestant(peer, [str(PEERS), str(HERE / "peers" / "dedup_worker.py"), peer]) for peer in ALL[1:]),
    ]
    with tempfile.TemporaryDirectory() as folder, running(contestants):
        run = [case(Path(folder), *given) for given in sizes]
        answers = in_turn(contestants, [c for c in run if c["size"] <= REPEATED], rounds, warm_up=[])
        answers |= in_turn(contestants, [c for c in run if c["size"] > REPEATED], 1, warm_up=[])
    rows = []
    for given in run:
        got = {name: answers[name, given["case"]] for name in given["contestants"]}
        for value, unit, less in (("rate", "documents/s", False), ("memory", "MB beyond the texts", True)):
            told = {name: [float(answer[value]) for answer in each] for name, each in got.items()}
            if less:  # what a round freed is there for the next one, which then seems to need none
                told = {name: [max(each)] for name, each in told.items()}
            made = row(f"{given['case']}, {unit}", told.pop("lmworks"), unit, told, None, less_is_better=less)
            rows.append(made | {"kept": {name: each[-1]["kept"] for name, each in got.items()}})
        rows[-1]["grouping_seconds"] = round(got["lmworks"][-1]["grouping_seconds"], 2)
    rows += recall(100 if chosen.quick else 500, DedupConfig())
    finish("data_dedup", rows, save=chosen.save)


if __name__ == "__main__":
    main()
