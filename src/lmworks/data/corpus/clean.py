"""One unit of work: read documents, normalize and divide them, take them through the steps, index what stays.

Knows no other unit, so that units can be cleaned in any order by anyone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from lmworks.core.errors import disk_errors
from lmworks.core.generation import Document
from lmworks.data.cleaning.filters import Preset, remove_lines, steps_of
from lmworks.data.cleaning.language import LanguageStep
from lmworks.data.cleaning.licenses import LicenseStep
from lmworks.data.cleaning.normalize import divide, normalize
from lmworks.data.cleaning.perplexity import PerplexityStep
from lmworks.data.cleaning.quality import QualityStep
from lmworks.data.cleaning.rules import Broken, clean
from lmworks.data.cleaning.word_lists import WordListStep
from lmworks.data.corpus.index import input_name, write_unit
from lmworks.data.corpus.inputs import Treatment
from lmworks.data.corpus.units import Unit
from lmworks.data.deduplication.fingerprints import DedupConfig
from lmworks.data.extraction.sources import Rejection
from lmworks.data.steps import Dropped, Step, Tally, shown

NAMED_REJECTIONS = 20


class RuleStep:
    """Keep a document that breaks no rule of a preset."""

    def __init__(self, preset: Preset, min_words: int | None) -> None:
        self.preset, self.steps = preset, steps_of(preset, min_words)

    def __call__(self, document: Document, tally: Tally) -> Document | Dropped:
        """See `Step`."""
        outcome = clean(document.text, self.steps)
        if isinstance(outcome, Broken):
            return Dropped(f"{self.preset}/{outcome.rule.name}", outcome.value)
        for rule in outcome.removed_lines:
            tally.count("lines", rule)
        return document if outcome.text == document.text else replace(document, text=outcome.text)


def checks_of(treatment: Treatment) -> tuple[Step, ...]:
    """What an input's documents go through, the cheapest first: licence, language, rules, word lists, what was learned.

    Raises:
        ConfigError: a language cannot be identified.
        DataError: a word list cannot be read.
        ArtifactError: a trained filter is not there or not whole.
    """
    steps: list[Step] = []
    if treatment.licenses is not None and (treatment.licenses.allow or treatment.licenses.deny):
        steps.append(LicenseStep(treatment.licenses))
    if treatment.language is not None:
        steps.append(LanguageStep(treatment.language.allow, treatment.language.threshold))
    steps.append(RuleStep(treatment.preset, treatment.min_words))
    steps += [WordListStep(words) for words in treatment.words]
    if treatment.quality is not None:
        steps.append(QualityStep(treatment.quality))
    if treatment.perplexity is not None:
        steps.append(PerplexityStep(treatment.perplexity))
    return tuple(steps)


@dataclass(frozen=True)
class Clean:
    """The task of cleaning one unit into a folder of its own.

    Args:
        workspace: holds the folders of units.
        max_characters: longer documents are divided.
        steps: that follow an input's own.
        dedup: for the fingerprints.
        first: steps before the rules: whatever must not even stand in a sample of a report.
    """

    workspace: Path
    max_characters: int
    steps: tuple[Step, ...]
    dedup: DedupConfig
    first: tuple[Step, ...] = ()

    def folder(self, unit: Unit) -> Path:
        """Where the unit's outcome lies once it is whole."""
        return self.workspace / f"{unit.name}-{unit.fingerprint()}"

    def __call__(self, unit: Unit) -> Path:
        """Clean the unit, unless that was done before.

        Raises:
            DiskFullError: the device is full.
        """
        folder = self.folder(unit)
        if not folder.exists():
            tally = Tally()
            staging = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
            with disk_errors(folder):
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
                try:
                    write_unit(staging, list(self._documents(unit, tally)), tally, self.dedup)
                    staging.rename(folder)
                except OSError:
                    shutil.rmtree(staging)
                    if not folder.exists():  # else a worker whose run was killed went on and wrote the same
                        raise
        return folder

    def _documents(self, unit: Unit, tally: Tally) -> Iterator[Document]:
        given = unit.treatment
        steps = (*self.first, *checks_of(given), *self.steps)
        for raw in unit.documents():
            if isinstance(raw, Rejection):
                tally.count("rejections", raw.reason)
                named = {"place": raw.place, "reason": raw.reason, "detail": raw.detail[:200]}
                tally.sample("rejections", "first", raw.place, named, NAMED_REJECTIONS)
            else:
                yield from cleaned(raw, given.preset, steps, self.max_characters, tally)


def cleaned(
    raw: Document, preset: Preset, steps: Sequence[Step], max_characters: int, tally: Tally
) -> Iterator[Document]:
    """What is left of one document: itself, some of the pieces that it is divided into, or nothing."""
    tally.count("documents", "read")
    tally.count("documents", "characters_read", len(raw.text))
    text, removed = remove_lines(normalize(raw.text, keep_layout=preset == "code"), preset)
    for rule in removed:
        tally.count("lines", rule)
    pieces = divide(text, max_characters) or [""]
    tally.count("documents", "pieces", len(pieces))
    tally.count("pieces", input_name(raw), len(pieces))
    for number, piece in enumerate(pieces):
        identity = raw.id if len(pieces) == 1 else f"{raw.id}-{number}"
        kept = _through(steps, replace(raw, id=identity, text=piece), tally)
        if kept is not None:
            if url := kept.meta.get("url"):
                tally.count("domains", domain_of(str(url)))
            yield kept


def domain_of(url: str) -> str:
    """The host of an address in small letters, `unknown` where it has none."""
    try:
        return urlsplit(url).hostname or "unknown"
    except ValueError:
        return "unknown"


def _through(steps: Sequence[Step], document: Document, tally: Tally) -> Document | None:
    """What the steps make of a document; None where one of them drops it."""
    for step in steps:
        outcome = step(document, tally)
        if isinstance(outcome, Dropped):
            tally.count("rules", outcome.rule)
            tally.sample("rules", outcome.rule, document.id, {**shown(document), "value": round(outcome.value, 4)})
            return None
        document = outcome
    return document
