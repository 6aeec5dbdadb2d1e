"""Which share of planted evaluation items is found, changed in ten ways, and how often text without any is suspected.

Items of BoolQ (or of the files given) are planted between pieces of presidents' messages. Beside ours stand two rules
of the field, written out here with the normalization of their projects: 13 words in a row (GPT-3;
lm-evaluation-harness), and 12 (datatrove, every digit made 0). All know the same items; a text is found when any is.
"""

from __future__ import annotations

import argparse
import random
import re
import string
import tempfile
import textwrap
import time
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from interleaved import finish, row

from lmworks.data.acquisition.fetch import FetchConfig, fetch
from lmworks.data.decontamination.evaluation_sets import EvaluationItem, EvaluationSetConfig, read_evaluation_set
from lmworks.data.decontamination.matching import EvaluationIndex
from lmworks.evals.inputs import read_documents

PIECE = 1500
_ASCII = str.maketrans("", "", string.punctuation)
_DIGITS = str.maketrans("123456789", "000000000")


def plain(text: str) -> list[str]:
    """Words as lm-evaluation-harness compares them."""
    return text.lower().translate(_ASCII).split()


def simplified(text: str) -> list[str]:
    """Words as datatrove compares them."""
    letters = unicodedata.normalize("NFD", text.lower().translate(_DIGITS))
    return "".join(letter for letter in letters if unicodedata.category(letter)[0] not in "PSM").split()


def rule(items: Sequence[EvaluationItem], n: int, words: Callable[[str], list[str]]) -> Callable[[str], bool]:
    """Whether a text shares `n` words in a row with any item."""

    def grams(text: str) -> set[tuple[str, ...]]:
        found = words(text)
        return {tuple(found[at : at + n]) for at in range(len(found) - n + 1)}

    known = set().union(*(grams("\n".join(item.texts)) for item in items))
    return lambda text: not known.isdisjoint(grams(text))


def changes(rng: random.Random, vocabulary: Sequence[str]) -> dict[str, Callable[[Sequence[str]], str]]:
    """Ways in which an item's texts come to stand in a document."""

    def replaced(rate: float) -> Callable[[Sequence[str]], str]:
        def change(texts: Sequence[str]) -> str:
            words = " ".join(texts).split()
            return " ".join(rng.choice(vocabulary) if rng.random() < rate else word for word in words)

        return change

    def typed(texts: Sequence[str]) -> str:
        letters = (c.upper() if rng.random() < 0.3 else c for c in "\n".join(texts))
        return re.sub(r"[,.;:!?'\"]", lambda mark: rng.choice(["", mark[0], f" {mark[0]}"]), "".join(letters))

    return {
        "word for word": "\n".join,
        "the first text alone": lambda texts: texts[0],
        "the last text alone": lambda texts: texts[-1],
        "texts in another order": lambda texts: "\n".join(reversed(texts)),
        "other case and punctuation": typed,
        "quoted lines of 40 characters": lambda texts: "\n> ".join(textwrap.wrap(" ".join(texts), 40)),
        "5% of words replaced": replaced(0.05),
        "10% of words replaced": replaced(0.1),
        "20% of words replaced": replaced(0.2),
        "the first half of the first text": lambda texts: texts[0][: len(texts[0]) // 2],
    }


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", type=Path, help="files of evaluation items; BoolQ where not given")
    parser.add_argument("--fields", nargs="*", default=[], help="that identify an item; all texts where not given")
    parser.add_argument("--quick", action="store_true", help="40 items, under a minute")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sets = chosen.sets
        if not sets:
            fetch(FetchConfig(name="boolq-questions", output=Path(folder, "boolq")))
            sets, chosen.fields = [Path(folder, "boolq/questions.jsonl")], ["question", "passage"]
        configs = [EvaluationSetConfig(path=path, fields=tuple(chosen.fields)) for path in sets]
        items = [item for config in configs for item in read_evaluation_set(config)]
        fetch(FetchConfig(name="state-of-the-union", output=Path(folder, "prose")))
        prose = [document.text for document in read_documents(Path(folder, "prose/documents.jsonl"))]
    began = time.process_time()
    index = EvaluationIndex(items)
    made = time.process_time() - began
    finders = {
        "lmworks": lambda text: bool(index.find(text)), "13 words": rule(items, 13, plain),
        "12 words": rule(items, 12, simplified),
    }  # fmt: skip
    rng = random.Random(0)
    pieces = [text[at : at + PIECE] for text in prose for at in range(0, len(text) - PIECE, PIECE)]
    planted = rng.sample(items, min(40 if chosen.quick else 400, len(items)))
    texts: dict[str, list[str]] = {}
    for name, change in changes(rng, sorted(set(" ".join(prose[:20]).lower().split()))).items():
        around = [rng.sample(pieces, 2) for _ in planted]
        texts[name] = [f"{a}\n\n{change(i.texts)}\n\n{b}" for i, (a, b) in zip(planted, around, strict=True)]
    texts["none: false alarms"] = rng.sample(pieces, min(400 if chosen.quick else 4000, len(pieces)))
    rows: list[dict[str, Any]] = []
    for name, cases in texts.items():
        shares, seconds = {}, {}
        for who, find in finders.items():
            began = time.process_time()
            shares[who] = [sum(map(find, cases)) / len(cases)]
            seconds[who] = time.process_time() - began
        less = name.startswith("none")
        told = row(f"planted: {name}", shares.pop("lmworks"), "share found", {}, None, less_is_better=less)
        rate = sum(map(len, cases)) / seconds["lmworks"] / 1e6
        rules = {who: round(share, 4) for who, (share,) in shares.items()}
        rows.append(told | {"texts": len(cases), "peers": rules, "megabytes_a_second": round(rate, 2)})
        print(rows[-1])
    rows.append(row("making the index", [len(items) / made], "items/s", {}, None) | {"items": len(items)})
    finish("data_decontamination", rows, save=chosen.save)


if __name__ == "__main__":
    main()
