"""A data sheet of a corpus by the headings of Gebru et al. (Datasheets for Datasets, 2021).

What the stage knows is told as facts; what only people can know comes from the configuration, and where nothing was
given the sheet says so. Knows no file and no page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.core.config import Config

UNANSWERED = "Not answered by whoever made this corpus."


class DataSheetConfig(Config):
    """What people know of a corpus and the stage cannot; each text stands under its heading."""

    motivation: str = ""
    """For what purpose and by whom the corpus was made, and who paid for it."""
    composition: str = ""
    """What the documents are, whom they are about, what is missing or sensitive."""
    collection: str = ""
    """How and when the text was gathered, and whether its authors were asked."""
    preprocessing: str = ""
    """What was done before the text came here."""
    uses: str = ""
    """What it should and should not be used for."""
    distribution: str = ""
    """To whom it is given, and under which terms."""
    maintenance: str = ""
    """Who looks after it, and how errors and requests for removal reach them."""


def data_sheet(given: DataSheetConfig, report: Mapping[str, Any], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Heading, facts and the text given, for each part of the sheet.

    Args:
        given: by people.
        report: of the corpus, as `Findings.to_dict` makes it without the sheet.
        settings: of the stage, as JSON.
    """
    facts: dict[str, list[str]] = {
        "motivation": [],
        "composition": _composition(report),
        "collection": _collection(report),
        "preprocessing": _preprocessing(report, settings),
        "uses": _uses(report, settings),
        "distribution": _distribution(report),
        "maintenance": [
            "`lineage.json` beside this page holds the configuration, the code and the hash of every input.",
            "`lmworks data forget ID` finds what was made from one document.",
        ],
    }
    return [
        {"heading": heading, "facts": found, "text": getattr(given, heading) or ("" if found else UNANSWERED)}
        for heading, found in facts.items()
    ]


def _composition(report: Mapping[str, Any]) -> list[str]:
    counts = report["counts"]
    facts = [
        f"{counts['train_documents']:,} documents to train on and {counts['validation_documents']:,} held out; "
        f"{(counts['train_bytes'] + counts['validation_bytes']) / 1e6:,.2f} MB of UTF-8 text.",
        "Each document has an id, its source, its licence and, where known, its address and date.",
        f"Sources: {_shares(report['sources'])}.",
    ]
    if report["languages"].keys() - {""}:
        facts.append(f"Languages, as identified: {_shares(report['languages'])}.")
    if report["tokens"]:
        facts.append(f"{report['tokens']['total']:,} tokens of {report['tokens']['tokenizer']}.")
    return facts


def _collection(report: Mapping[str, Any]) -> list[str]:
    counts = report["counts"]
    facts = [
        f"{counts['read']:,} documents were read, {counts['rejected']:,} files or rows could not be read; long ones "
        f"were divided, which gave {counts['pieces']:,} pieces."
    ]
    return facts + [f"{made['name']}: {made['what']}." for made in report["inputs"]]


def _preprocessing(report: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    dropped = [f"{row['name']} {row['dropped']:,}" for row in report["funnel"] if row["dropped"]]
    facts = [
        "Unicode was normalized (NFC), broken encodings mended, control characters removed.",
        f"Dropped at each step: {', '.join(dropped) or 'nothing'}.",
    ]
    for row in report["privacy"]:
        facts.append(f"Personal data or secrets: {row['found']:,} times {row['kind']}.")
    if settings.get("pii") is None:
        facts.append("Personal data was not looked for.")
    return facts


def _uses(report: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    if settings.get("decontaminate") is None:
        return ["No evaluation set was compared with it: results on public benchmarks may be from memory."]
    return [
        f"{len(report['contamination']):,} evaluation items were found and taken out; other sets were not compared."
    ]


def _distribution(report: Mapping[str, Any]) -> list[str]:
    return [f"Licences of the documents, as their sources state them: {_shares(report['licenses'])}."]


def _shares(shares: Mapping[str, Mapping[str, int]], most: int = 12) -> str:
    """The largest of a table of shares, in words."""
    ranked = sorted(shares.items(), key=lambda pair: (-pair[1]["documents"], pair[0]))
    named = [f"{name or 'unknown'} ({values['documents']:,})" for name, values in ranked[:most]]
    return ", ".join(named) + (f" and {len(ranked) - most} more" if len(ranked) > most else "")
