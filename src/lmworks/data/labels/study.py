"""Annotators, their consent and their labels, in a journal to which is only added. Knows no HTTP.

| entry | says |
|---|---|
| `consent_text` | a version of what annotators agree to, once |
| `consent` | an annotator agreed to a version |
| `label` | an annotator chose: which answers stood left and right, which one was better, a note |
| `withdraw` | an annotator takes consent back: none of the labels before it is used |

A later label of the same item by the same annotator takes the earlier one's place; both stay in the journal.
"""

from __future__ import annotations

import hashlib
import threading
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmworks.core.errors import DataError
from lmworks.data.identity import row_id
from lmworks.data.journal import Journal
from lmworks.data.labels.items import Item, keep_items
from lmworks.data.shuffle import permutation

JOURNAL = "journal.jsonl"
CONSENT = (
    "You will read prompts with two answers each and say which answer is better. Kept are the name that you give, your "
    "choices, your notes and their times. They may be used to train and evaluate language models. Taking part is "
    "voluntary. You can withdraw at any time on this page; none of your labels is used then."
)
"""What annotators agree to where no other text is given."""
Choice = Literal["left", "right", "tie"]
Verdict = Literal["first", "second", "tie"]
"""Which of an item's answers is better."""
_NAME, _NOTE = 80, 4000
"""Most characters."""
_JOINERS = "\u200c\u200d"
"""Characters without width that names in Persian and Indian scripts are spelled with."""


@dataclass(frozen=True)
class Label:
    """What one annotator says of one item."""

    annotator: str
    item: str
    verdict: Verdict
    left: Literal["first", "second"]
    """Which answer stood at the left."""
    note: str
    consent: str
    """Version of the text that the annotator had agreed to."""
    time: str


class Study:
    """Labels being collected.

    Args:
        folder: of the labels, new or begun before.
        items: what is compared.
        consent: what annotators agree to. Under another text than before they are asked again.
        seed: decides the orders.

    Raises:
        DataError: the folder holds labels of other items or another seed, or is held by another process.
    """

    def __init__(self, folder: Path, items: list[Item], consent: str = CONSENT, seed: int = 0) -> None:
        if not consent.strip():
            raise DataError("the consent text is empty", "Say what annotators agree to")
        self.items = {item.id: item for item in items}
        self.consent, self._seed = consent.strip(), seed
        self.version = hashlib.sha256(self.consent.encode()).hexdigest()[:12]
        self._one_at_a_time = threading.Lock()
        identity = {"labels": 1, "items": row_id(*self.items), "seed": seed}
        self._journal = Journal(folder / JOURNAL, identity)
        keep_items(folder, items)
        self._state = read_state(self._journal.entries)
        if self.version not in self._state.texts:
            self._append({"consent_text": self.consent, "version": self.version})

    def close(self) -> None:
        """Let another process go on."""
        self._journal.close()

    def agreed(self, annotator: str) -> bool:
        """Whether an annotator agreed to the text as it is now, and did not withdraw since."""
        return self._state.consents.get(named(annotator)) == self.version

    def agree(self, annotator: str, version: str) -> None:
        """Record that an annotator agrees.

        Raises:
            DataError: the name is none, or the version is not what is shown now.
        """
        annotator = named(annotator)
        if version != self.version:
            raise DataError(f"the consent text {version!r} is not the present one", "Read the present text again")
        with self._one_at_a_time:
            if self._state.consents.get(annotator) != version:
                self._append({"consent": version, "annotator": annotator})

    def withdraw(self, annotator: str) -> None:
        """Record that none of an annotator's labels so far may be used."""
        annotator = named(annotator)
        with self._one_at_a_time:
            if annotator in self._state.consents:
                self._append({"withdraw": annotator})

    def label(self, annotator: str, item: str, choice: Choice, note: str = "") -> None:
        """Record a choice.

        Raises:
            DataError: the annotator has not agreed, or there is no such item.
        """
        annotator = named(annotator)
        if len(note) > _NOTE or any("\ud800" <= char <= "\udfff" for char in note):
            raise DataError(f"a note of {len(note)} characters is too long or no text", f"Write {_NOTE} at most")
        left = self.left(annotator, item)
        other: Literal["first", "second"] = "second" if left == "first" else "first"
        verdict = {"left": left, "right": other, "tie": "tie"}[choice]
        with self._one_at_a_time:
            if self._state.consents.get(annotator) != self.version:
                raise DataError(f"{annotator!r} has not agreed to the consent text", "Agree to it first")
            told = {"label": verdict, "left": left, "item": item, "annotator": annotator, "consent": self.version}
            self._append({**told, "note": note.strip()})

    def labels_of(self, annotator: str) -> dict[str, Label]:
        """An annotator's labels that count, by item."""
        annotator = named(annotator)
        return {item: label for (who, item), label in self._state.labels.items() if who == annotator}

    def order_of(self, annotator: str) -> list[str]:
        """The items in the order in which an annotator sees them."""
        names = list(self.items)
        return [names[number] for number in permutation(len(names), self._seed, _number(named(annotator))).tolist()]

    def left(self, annotator: str, item: str) -> Literal["first", "second"]:
        """Which answer of an item stands at the left for an annotator.

        Raises:
            DataError: there is no such item.
        """
        if item not in self.items:
            raise DataError(f"there is no item {item!r}", "Reload the page")
        return "second" if _number(str(self._seed), named(annotator), item) & 1 else "first"

    def _append(self, entry: dict[str, Any]) -> None:
        entry = {**entry, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        self._journal.append(entry)
        self._state.take(entry)


@dataclass
class State:
    """What the entries of a journal come to."""

    texts: dict[str, str]
    """Consent texts by version."""
    consents: dict[str, str]
    """Annotators whose consent holds, and its version."""
    withdrawn: set[str]
    """Annotators whose consent does not hold any more."""
    labels: dict[tuple[str, str], Label]
    """That count, by annotator and item, in the order of their first choice."""

    def take(self, entry: dict[str, Any]) -> None:
        """Take in one entry."""
        if "consent_text" in entry:
            self.texts[entry["version"]] = entry["consent_text"]
        elif "withdraw" in entry:
            annotator = entry["withdraw"]
            self.consents.pop(annotator, None)
            self.withdrawn.add(annotator)
            self.labels = {key: label for key, label in self.labels.items() if key[0] != annotator}
        elif "label" in entry:
            made = {name: entry[name] for name in ("annotator", "item", "left", "note", "consent", "time")}
            self.labels[entry["annotator"], entry["item"]] = Label(verdict=entry["label"], **made)
        elif "consent" in entry:
            self.consents[entry["annotator"]] = entry["consent"]
            self.withdrawn.discard(entry["annotator"])


def read_state(entries: list[dict[str, Any]]) -> State:
    """What the entries of a journal come to."""
    state = State({}, {}, set(), {})
    for entry in entries:
        state.take(entry)
    return state


def named(annotator: str) -> str:
    """A name as it is kept: without outer or double spaces.

    Raises:
        DataError: it is empty, too long, or holds control characters.
    """
    name = " ".join(unicodedata.normalize("NFC", annotator).split())
    hidden = any(unicodedata.category(char) in ("Cc", "Cs", "Cf") and char not in _JOINERS for char in name)
    if not 0 < len(name) <= _NAME or hidden:
        raise DataError(f"{annotator[:_NAME]!r} is no name of an annotator", f"Give 1 to {_NAME} letters")
    return name


def _number(*parts: str) -> int:
    return int(row_id(*parts), 16)
