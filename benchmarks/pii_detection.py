"""Personal data in labelled samples: precision and recall of each kind, ours against Presidio's recognizers.

Two sets, told apart in the figures. Presidio's synthetic samples (`synth_dataset_v2.json.gz`: full_text, spans; given
as an argument or in LMWORKS_PRESIDIO_SAMPLES, left out without), of many countries and by other authors: the first
rules were made with them in sight, so that they tell how rules keep, not how they meet what is new. `held-out`: texts
and values of `pii_heldout.py` (needs `faker`), of the half that is only ever counted, with secrets and much that only
looks alike. A find counts when it overlaps a labelled span of its kind by half of both; a secret under whatever name.
Presidio takes part with its pattern recognizers where it is installed (`pip install presidio-analyzer`); its language
models need a download and stay out. Kinds that a pattern cannot find (persons, places, dates) are not asked of either.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from interleaved import finish
from pii_heldout import NEGATIVES, SECRET_FORMS, TEMPLATES
from pii_heldout import samples as make_samples

from lmworks.data.privacy.detectors import search
from lmworks.data.privacy.redact import SECRET_KINDS, PiiConfig, detectors_of

KINDS = ("EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "IP_ADDRESS")
OWN_KINDS = ("CN_ID", "CN_PLATE", "MAC_ADDRESS", "SECRET")
"""Asked of us alone, in the held-out half."""
Span = tuple[str, int, int]


def ours(text: str) -> list[Span]:
    """Our finds; keys and passwords are one kind."""
    return [
        ("SECRET" if found.kind in SECRET_KINDS else found.kind, found.start, found.end)
        for found in search(text, _DETECTORS)
    ]


_DETECTORS = detectors_of(PiiConfig())


def presidio() -> Callable[[str], list[Span]] | None:
    """Presidio's pattern recognizers, or None where it is not installed."""
    if find_spec("presidio_analyzer") is None:
        return None
    import tldextract
    from presidio_analyzer import predefined_recognizers as known

    tldextract.extract = tldextract.TLDExtract(suffix_list_urls=())  # the list it ships, without asking the network

    recognizers = [
        known.EmailRecognizer(), known.PhoneRecognizer(), known.CreditCardRecognizer(), known.IbanRecognizer(),
        known.UsSsnRecognizer(), known.IpRecognizer(),
    ]  # fmt: skip

    def find(text: str) -> list[Span]:
        results = [
            r for recognizer in recognizers for r in recognizer.analyze(text, recognizer.supported_entities, None)
        ]
        chosen: list[Any] = []
        for result in sorted(results, key=lambda r: (-r.score, r.start)):
            if all(result.end <= c.start or result.start >= c.end for c in chosen):
                chosen.append(result)
        return [(r.entity_type, r.start, r.end) for r in chosen]

    return find


def judge(
    samples: Sequence[dict[str, Any]], find: Callable[[str], list[Span]]
) -> tuple[dict[str, Counter[str]], float]:
    """Hits, misses and false alarms by kind, and the seconds of processor time."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in (*KINDS, *OWN_KINDS)}
    begun = time.process_time()
    answers = [find(sample["full_text"]) for sample in samples]
    seconds = time.process_time() - begun
    for sample, found in zip(samples, answers, strict=True):
        labelled = [(s["entity_type"], s["start_position"], s["end_position"]) for s in sample["spans"]]
        for kind in counts:
            wanted = [span for span in labelled if span[0] == kind]
            told = [span for span in found if span[0] == kind]
            hits = sum(any(_same(a, b) for b in told) for a in wanted)
            counts[kind].update(hits=hits, missed=len(wanted) - hits)
            counts[kind].update(false=sum(not any(_same(a, b) for b in wanted) for a in told))
    return counts, seconds


def _same(a: Span, b: Span) -> bool:
    shared = min(a[2], b[2]) - max(a[1], b[1])
    return 2 * shared >= max(a[2] - a[1], b[2] - b[1])


def figures(counts: Counter[str]) -> tuple[float, float]:
    """Precision and recall."""
    hits = counts["hits"]
    return hits / max(hits + counts["false"], 1), hits / max(hits + counts["missed"], 1)


def table(title: str, given: Sequence[dict[str, Any]], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Judge both sides on one set; print it and return its rows."""
    sides = {"ours": ours, **({"presidio-analyzer": theirs} if (theirs := presidio()) else {})}
    judged = {name: judge(given, find) for name, find in sides.items()}
    print(f"\n{title}: {len(given):,} texts")
    print(f"{'kind':16}{'labelled':>9}" + "".join(f"{f'{name}: precision, recall':>34}" for name in sides))
    rows = []
    for kind in kinds:
        of = {name: counts[kind] for name, (counts, _) in judged.items() if name == "ours" or kind in KINDS}
        both = [figures(counts) for counts in of.values()]
        labelled = of["ours"]["hits"] + of["ours"]["missed"]
        print(f"{kind:16}{labelled:>9}" + "".join(f"{p:>26.3f}{r:>8.3f}" for p, r in both))
        for place, name in enumerate(("precision", "recall")):
            rows.append(_row(f"{title}: {kind} {name}", [pair[place] for pair in both], "share"))
    size = sum(len(sample["full_text"].encode()) for sample in given)
    rows.append(_row(f"{title}: speed", [size / 1e6 / seconds for _, seconds in judged.values()], "MB/s"))
    return rows


def held_out(rounds: int) -> list[dict[str, Any]]:
    """The half that no rule was looked up in, its secrets as one kind."""
    made = make_samples("held-out", rounds)
    for sample in made:
        for span in sample["spans"]:
            if span["entity_type"] in SECRET_FORMS:
                span["entity_type"] = "SECRET"
    return made


def main() -> None:
    """See the file's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = os.environ.get("LMWORKS_PRESIDIO_SAMPLES")
    parser.add_argument("samples", type=Path, nargs="?", default=known, help="synth_dataset_v2.json.gz")
    parser.add_argument("--quick", action="store_true", help="every third sample")
    parser.add_argument("--save", action="store_true", help="also write results/DATE-pii-detection.json")
    given = parser.parse_args()
    step = 3 if given.quick else 1
    if presidio() is None:
        print("presidio-analyzer is not installed: ours alone")
    rows = []
    if given.samples is None:
        print("no samples of Presidio were given: the held-out set alone")
    else:
        samples = json.loads(gzip.decompress(Path(given.samples).read_bytes()))
        others = Counter(span["entity_type"] for sample in samples for span in sample["spans"])
        print("not asked for:", ", ".join(f"{n} {kind}" for kind, n in others.most_common() if kind not in KINDS))
        rows += table("presidio", samples[::step], KINDS)
    if find_spec("faker") is None:
        print("faker is not installed: no held-out set")
    else:
        rows += table("held-out", held_out(60 // step), (*KINDS, *OWN_KINDS))
        print(f"of {len(TEMPLATES['held-out'])} texts with, {len(NEGATIVES['held-out'])} without anything to be found")
    finish("pii-detection", rows, save=given.save)


def _row(case: str, values: Sequence[float], unit: str) -> dict[str, Any]:
    theirs = round(values[1], 4) if len(values) > 1 else None
    ratio = round(values[0] / values[1], 3) if theirs else None
    return {"case": case, "ours": round(values[0], 4), "unit": unit, "peer": "presidio-analyzer" if theirs is not None
            else None, "theirs": theirs, "ratio": ratio, "spread": 0, "limit_share": None}  # fmt: skip


if __name__ == "__main__":
    main()
