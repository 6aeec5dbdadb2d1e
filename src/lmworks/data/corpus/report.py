"""What happened to the documents: counts, distributions and samples, as JSON.

Counts come from the tally of cleaning and from the decisions, samples are chosen by hashes, so the report depends
neither on the order of the inputs nor on who worked. Knows no cleaning step, and no page.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmworks.data.cleaning.filters import Preset, rules_of
from lmworks.data.corpus.cut import Cuts
from lmworks.data.corpus.data_sheet import DataSheetConfig, data_sheet
from lmworks.data.corpus.decide import LEFT_OUT, TRAIN, VALIDATION, Decisions
from lmworks.data.corpus.index import Index
from lmworks.data.decontamination.step import contamination_report
from lmworks.data.privacy.redact import privacy_report
from lmworks.data.shuffle import mix
from lmworks.data.steps import Tally, shown

FUNNEL = ("pii", "license", "language", "rules", "words", "quality", "perplexity", "decontaminate")
"""What drops single documents, in the order in which they meet it; presets are the `rules`."""
KEPT_SAMPLES = 6
PAIR_SAMPLES = {"exact": 3, "address": 3, "near": 6, "semantic": 6}
_NAMES = {TRAIN: "train", VALIDATION: "validation"}


class Findings:
    """What a corpus came to.

    Args:
        presets: of filter rules, each with the fewest words that inputs set; None where one takes the preset's.
        tally: of cleaning.
        index: of the cleaned documents.
        decisions: about them.
        cuts: what was cut out of those that stay, where anything was to be.
        settings: of the stage, as JSON.
        sheet: what people say in the data sheet.
        inputs: `name` of each and `what` is known of it.
        tokens: `tokenizer`, and how many tokens each split and each of `sources` has, where they were counted.
    """

    def __init__(
        self,
        presets: Mapping[Preset, Collection[int | None]],
        tally: Tally,
        index: Index,
        decisions: Decisions,
        cuts: Cuts | None = None,
        *,
        settings: Mapping[str, Any],
        sheet: DataSheetConfig,
        inputs: Sequence[Mapping[str, str]] = (),
        tokens: Mapping[str, Any] | None = None,
    ) -> None:
        self._settings, self._sheet, self._inputs, self._tokens = settings, sheet, inputs, tokens
        self._presets, self._tally, self._index, self._decisions = presets, tally, index, decisions
        self._cuts = cuts
        replaced = decisions.winners != np.arange(len(decisions.winners))
        dropped = np.flatnonzero(replaced)
        groups, kept = decisions.groups, decisions.winners[dropped]
        same = groups.exact[dropped] == groups.exact[kept]
        fetched_twice = ~same & (groups.url[dropped] == groups.url[kept])
        self._duplicates = {"exact": dropped[same]}
        if fetched_twice.any():
            self._duplicates["address"] = dropped[fetched_twice]
        self._duplicates["near"] = dropped[~same & ~fetched_twice]
        self._winners = decisions.winners.copy()
        self._cosine: dict[int, float] = {}
        if (meanings := decisions.semantic) is not None:
            self._duplicates["semantic"] = meanings.dropped
            self._winners[meanings.dropped] = meanings.winners
            self._cosine = dict(zip(meanings.dropped.tolist(), meanings.similarity.tolist(), strict=True))
        gone = self._winners != np.arange(len(self._winners))
        self._emptied = int(((decisions.split == LEFT_OUT) & ~gone).sum())
        self._kept = np.flatnonzero(decisions.split != LEFT_OUT)

    @property
    def counts(self) -> dict[str, int]:
        """The figures that the manifest repeats."""
        counts = {**dict.fromkeys(("read", "characters_read", "pieces"), 0), **self._tally.counts("documents")}
        for split, name in _NAMES.items():
            chosen = self._index.records[self._decisions.split == split]
            counts |= {f"{name}_documents": len(chosen), f"{name}_bytes": int(chosen["bytes"].sum())}
        return dict(sorted(counts.items())) | {
            "rejected": sum(self._tally.counts("rejections").values()),
            "filtered": sum(self._tally.counts("rules").values()),
            **{f"{why}_duplicates": len(numbers) for why, numbers in self._duplicates.items()},
            "moved_to_train": self._decisions.moved_to_train,
            **({} if self._cuts is None else {"emptied": self._emptied, **self._cuts.counts()}),
        }

    def summary(self) -> str:
        """One line about the outcome."""
        counts = self.counts
        return (
            f"{counts['read']:,} read, {counts['rejected']:,} unreadable, {counts['filtered']:,} filtered, "
            f"{sum(map(len, self._duplicates.values())):,} duplicates; "
            f"{counts['train_documents']:,} train ({counts['train_bytes'] / 1e6:.1f} MB) and "
            f"{counts['validation_documents']:,} validation documents"
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of `report.json`."""
        report = {
            "counts": self.counts,
            "presets": list(self._presets),
            "funnel": self.funnel(),
            "rules": self._rules(),
            "removed_lines": dict(sorted(self._tally.counts("lines").items())),
            "rejections": {
                "counts": dict(sorted(self._tally.counts("rejections").items())),
                "first": self._tally.samples("rejections", "first"),
            },
            "duplicates": {why: self._pairs(why, numbers) for why, numbers in self._duplicates.items()},
            "semantic_clusters": self._clusters(),
            "privacy": privacy_report(self._tally),
            "contamination": contamination_report(self._tally),
            "samples": self._samples(),
            "licenses": self._shares("license"),
            "sources": self._sources(),
            "languages": self._shares("language"),
            "quality": dict(sorted(self._tally.counts("quality").items())),
            "perplexity": dict(sorted(self._tally.counts("perplexity").items())),
            "domains": dict(_most(self._tally.counts("domains"))),
            "lost_licenses": dict(_most(self._tally.counts("lost_licenses"))),
            "lengths": histogram(self._index.records["characters"][self._kept]),
            "inputs": [dict(made) for made in self._inputs],
            "tokens": None if self._tokens is None else dict(self._tokens),
        }
        return report | {"data_sheet": data_sheet(self._sheet, report, self._settings)}

    def funnel(self) -> list[dict[str, Any]]:
        """Documents that each step met, dropped and left, from the pieces read to the corpus."""
        counts = self.counts
        met = counts["pieces"]
        lost = dict.fromkeys(FUNNEL, 0)
        for key, count in self._tally.counts("rules").items():
            step = key.partition("/")[0]
            lost[step if step in lost else "rules"] += count
        later = {f"{why} duplicates": len(numbers) for why, numbers in self._duplicates.items()}
        if self._cuts is not None:
            later["nothing left after cuts"] = self._emptied
        rows = []
        for name, dropped in (lost | later).items():
            if dropped or name == "rules" or name in later:
                rows.append({"name": name, "met": met, "dropped": dropped, "left": met - dropped})
                met -= dropped
        return rows

    def _rules(self) -> list[dict[str, Any]]:
        """Every rule of the presets in order, and whatever else dropped documents."""
        bounds: dict[tuple[Preset, str], tuple[set[float], set[float], str]] = {}
        for preset, min_words in self._presets.items():
            for rule in (rule for fewest in min_words for rule in rules_of(preset, fewest)):
                low, high, _ = bounds.setdefault((preset, rule.name), (set(), set(), rule.source))
                low.add(rule.low)
                high.add(rule.high)
        rows: list[dict[str, Any]] = [
            {"preset": preset, "name": name, "low": _bound(low), "high": _bound(high), "source": source}
            for (preset, name), (low, high, source) in bounds.items()
        ]
        dropped = self._tally.counts("rules")
        for key in sorted(dropped.keys() - {f"{row['preset']}/{row['name']}" for row in rows}):
            step, _, name = key.partition("/")
            rows.append({"preset": step, "name": name, "low": None, "high": None, "source": ""})
        for row in rows:
            key = f"{row['preset']}/{row['name']}"
            row |= {"dropped": dropped[key], "samples": self._tally.samples("rules", key)}
        return rows

    def _pairs(self, why: str, numbers: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Some dropped documents beside the one that stays."""
        identity, winners = self._index.records["identity"], self._winners
        ranks = mix(identity[numbers] + mix(identity[winners[numbers]]))
        chosen = numbers[np.argsort(ranks, kind="stable")[: PAIR_SAMPLES[why]]]
        read = self._index.documents([number for one in chosen.tolist() for number in (one, int(winners[one]))])
        pairs: list[dict[str, Any]] = [{"dropped": shown(dropped), "kept": shown(next(read))} for dropped in read]
        for pair, number in zip(pairs, chosen.tolist(), strict=True):
            if number in self._cosine:
                pair["cosine"] = round(self._cosine[number], 4)
        return pairs

    def _clusters(self) -> list[dict[str, int]]:
        """Documents that k-means put together, those first that lost the most."""
        sizes = () if self._decisions.semantic is None else self._decisions.semantic.sizes
        ranked = sorted(sizes, key=lambda sizes: (-sizes[1], -sizes[0]))
        return [{"documents": documents, "dropped": dropped} for documents, dropped in ranked]

    def _samples(self) -> list[dict[str, Any]]:
        """Some of what is kept."""
        ranks = mix(self._index.records["identity"][self._kept])
        chosen = self._kept[np.argsort(ranks, kind="stable")[:KEPT_SAMPLES]].tolist()
        read = self._index.documents(chosen)
        return [
            {**shown(document), "split": _NAMES[int(self._decisions.split[number])]}
            for number, document in zip(chosen, read, strict=True)
        ]

    def _sources(self) -> dict[str, dict[str, int]]:
        """What became of the pieces of each source, and what is left of it."""
        read = self._tally.counts("pieces")
        indexed = np.bincount(self._index.records["source"], minlength=len(self._index.labels["source"]))
        passed = dict(zip(self._index.labels["source"], indexed.tolist(), strict=True))
        tokens = {} if self._tokens is None else self._tokens["sources"]
        shares = self._shares("source")
        rows = {}
        for name in sorted(read):
            kept = shares.get(name, {"documents": 0, "bytes": 0})
            filtered = read[name] - passed.get(name, 0)
            counts = {"pieces": read[name], "filtered": filtered, "repeated": passed.get(name, 0) - kept["documents"]}
            rows[name] = counts | kept | ({"tokens": tokens.get(name, 0)} if tokens else {})
        return rows

    def _shares(self, label: str) -> dict[str, dict[str, int]]:
        """Documents and bytes kept, by a label."""
        names, kept = self._index.labels[label], self._index.records[self._kept]
        documents = np.bincount(kept[label], minlength=len(names))
        sizes = np.bincount(kept[label], weights=kept["bytes"], minlength=len(names))
        return {
            name: {"documents": int(documents[number]), "bytes": int(sizes[number])}
            for number, name in sorted(enumerate(names), key=lambda pair: pair[1])
            if documents[number]
        }


def losses(tally: Tally) -> str:
    """One line: how many were read, and what was lost to what."""
    lost = [f"{count:,} {reason}" for reason, count in _most(tally.counts("rejections"))]
    lost += [f"{count:,} broke {name.partition('/')[2]!r}" for name, count in _most(tally.counts("rules"))]
    first = tally.samples("rejections", "first")
    named = f" (for one: {first[0]['place']}: {first[0]['detail']})" if first else ""
    return f"{tally.counts('documents')['read']:,} read; lost: {', '.join(lost) or 'none'}{named}"


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Largest first, by name where equal."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _bound(values: Collection[float]) -> float | list[float] | None:
    """A rule's bound; all of them where inputs differ, None where there is none."""
    finite = sorted(value for value in values if math.isfinite(value))
    return finite if len(finite) > 1 else next(iter(finite), None)


def histogram(lengths: NDArray[np.int64]) -> list[dict[str, int]]:
    """Documents by length in characters, in bins whose bounds double."""
    if not len(lengths):
        return []
    bins = np.bincount(np.frexp(np.maximum(lengths, 1))[1])
    return [
        {"from": 1 << (b - 1), "to": 1 << b, "documents": int(bins[b])}
        for b in range(int(np.flatnonzero(bins)[0]), len(bins))
    ]
