"""What happened to the documents, counted and sampled while they pass, and shown as JSON and as one HTML page.

Samples are chosen by the hash of the document, so the report does not depend on the order of the inputs.
Knows no cleaning step.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from lmworks.core.generation import Document
from lmworks.data.cleaning.filters import Rule
from lmworks.data.extraction.sources import Rejection

SAMPLES = 3
SAMPLE_CHARACTERS = 600
NAMED_REJECTIONS = 20
_BAR_WIDTH, _PLOT_HEIGHT = 36, 140


class Samples:
    """The `size` items with the least hash of their key: a sample that does not depend on the order."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: list[tuple[str, dict[str, Any]]] = []

    def offer(self, key: str, item: dict[str, Any]) -> None:
        """Keep the item if its key's hash is among the least."""
        rank = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        if len(self._items) < self._size or rank < self._items[-1][0]:
            self._items = sorted([*self._items, (rank, item)], key=lambda pair: pair[0])[: self._size]

    @property
    def items(self) -> list[dict[str, Any]]:
        """By rank."""
        return [item for _, item in self._items]


class Findings:
    """Collects counts and samples.

    Args:
        preset: name of the filter rules.
        rules: in the order of their application.
    """

    def __init__(self, preset: str, rules: Sequence[Rule]) -> None:
        self._preset, self._rules = preset, rules
        self._counts: Counter[str] = Counter()
        self._rejections: Counter[str] = Counter()
        self._named: list[dict[str, str]] = []
        self._broken: Counter[str] = Counter()
        self._lines: Counter[str] = Counter()
        self._dropped = {rule.name: Samples(SAMPLES) for rule in rules}
        self._duplicates: Counter[str] = Counter()
        self._pairs = {"exact": Samples(SAMPLES), "near": Samples(2 * SAMPLES)}
        self._kept = Samples(2 * SAMPLES)
        self._licenses: dict[str, Counter[str]] = {}
        self._lengths: list[int] = []
        self.moved_to_train = 0

    def read(self, document: Document) -> None:
        """A document came in."""
        self._counts["read"] += 1
        self._counts["characters_read"] += len(document.text)

    def rejected(self, rejection: Rejection) -> None:
        """A file or row gave no document."""
        self._rejections[rejection.reason] += 1
        if len(self._named) < NAMED_REJECTIONS:
            self._named.append({"place": rejection.place, "reason": rejection.reason, "detail": rejection.detail[:200]})

    def removed_lines(self, rules: Iterable[str]) -> None:
        """Lines were taken out of a document, each by the named rule."""
        self._lines.update(rules)

    def filtered(self, document: Document, rule: Rule, value: float) -> None:
        """A document broke a rule."""
        self._broken[rule.name] += 1
        self._dropped[rule.name].offer(document.id, {**_shown(document), "value": round(value, 4)})

    def duplicate(self, why: str, document: Document, kept: Document) -> None:
        """A document was dropped in favor of another."""
        self._duplicates[why] += 1
        self._pairs[why].offer(document.id + kept.id, {"dropped": _shown(document), "kept": _shown(kept)})

    def keep(self, splits: Mapping[str, Sequence[Document]]) -> None:
        """The outcome."""
        for name, documents in splits.items():
            self._counts[f"{name}_documents"] = len(documents)
            self._counts[f"{name}_bytes"] = sum(len(d.text.encode()) for d in documents)
            for document in documents:
                self._kept.offer(document.id, {**_shown(document), "split": name})
                self._lengths.append(len(document.text))
                license_counts = self._licenses.setdefault(document.license, Counter())
                license_counts["documents"] += 1
                license_counts["bytes"] += len(document.text.encode())

    def losses(self) -> str:
        """One line: how many were read, and what was lost to what."""
        lost = [f"{count:,} {reason}" for reason, count in self._rejections.most_common()]
        lost += [f"{count:,} broke {name!r}" for name, count in self._broken.most_common()]
        named = f" (first: {self._named[0]['place']}: {self._named[0]['detail']})" if self._named else ""
        return f"{self._counts['read']:,} read; lost: {', '.join(lost) or 'none'}{named}"

    def summary(self) -> str:
        """One line about the outcome."""
        counts = self._counts
        return (
            f"{counts['read']:,} read, {sum(self._rejections.values()):,} unreadable, "
            f"{sum(self._broken.values()):,} filtered, "
            f"{sum(self._duplicates.values()):,} duplicates; {counts['train_documents']:,} train "
            f"({counts['train_bytes'] / 1e6:.1f} MB) and {counts['validation_documents']:,} validation documents"
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return {
            "counts": {
                **dict(sorted(self._counts.items())),
                "rejected": sum(self._rejections.values()),
                "filtered": sum(self._broken.values()),
                "exact_duplicates": self._duplicates["exact"],
                "near_duplicates": self._duplicates["near"],
                "moved_to_train": self.moved_to_train,
            },
            "preset": self._preset,
            "rules": [
                {
                    "name": rule.name,
                    "low": rule.low if math.isfinite(rule.low) else None,
                    "high": rule.high if math.isfinite(rule.high) else None,
                    "source": rule.source,
                    "dropped": self._broken[rule.name],
                    "samples": self._dropped[rule.name].items,
                }
                for rule in self._rules
            ],
            "removed_lines": dict(sorted(self._lines.items())),
            "rejections": {"counts": dict(sorted(self._rejections.items())), "first": self._named},
            "duplicates": {why: samples.items for why, samples in self._pairs.items()},
            "samples": self._kept.items,
            "licenses": {name: dict(counts) for name, counts in sorted(self._licenses.items())},
            "lengths": histogram(self._lengths),
        }


def _shown(document: Document) -> dict[str, Any]:
    text = document.text
    cut = text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + " …"
    return {"id": document.id, "source": document.source, "text": cut}


def histogram(lengths: Sequence[int]) -> list[dict[str, int]]:
    """Documents by length in characters, in bins whose bounds double."""
    bins = Counter(max(length, 1).bit_length() for length in lengths)
    if not bins:
        return []
    return [{"from": 1 << (b - 1), "to": 1 << b, "documents": bins[b]} for b in range(min(bins), max(bins) + 1)]


def render_html(report: Mapping[str, Any]) -> str:
    """The report as one page that needs nothing else."""
    most = max((b["documents"] for b in report["lengths"]), default=1)
    bars = [
        {**b, "x": n * _BAR_WIDTH, "height": round(_PLOT_HEIGHT * b["documents"] / most, 1)}
        for n, b in enumerate(report["lengths"])
    ]
    return _template().render(report=report, bars=bars, bar_width=_BAR_WIDTH, plot_height=_PLOT_HEIGHT)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["commas"] = lambda number: f"{number:,}"
    return environment.from_string(files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8"))
