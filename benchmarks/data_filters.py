"""Filters of documents against datatrove: documents a second of one core, and whether they decide alike.

Both sides run the same recipe on the same documents in turn, in one process, timed by the processor's own clock, each
time having forgotten all words; `warm` is ours once more with them remembered, as it is after the first megabytes of a
corpus. A difference is printed with its document. datatrove's words of English come from spaCy's blank tokenizer, which
needs no download. Needs datatrove and spacy (`pip install datatrove spacy`).

`--languages FOLDER` also measures language identification: FOLDER holds text files whose names end in the language of
their lines, `NAME.deu.txt` or `NAME_de.tsv`, such as NTREX and MGSM have.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from interleaved import finish, row

from lmworks.data.cleaning import lexicon
from lmworks.data.cleaning.filters import PRESETS
from lmworks.data.cleaning.language import identify
from lmworks.data.cleaning.language import languages as identifiable
from lmworks.data.cleaning.normalize import divide
from lmworks.data.cleaning.rules import Broken, clean

DOCUMENT_CHARACTERS = 5_000
QUICK_DOCUMENTS = 40
THREE_LETTERS = {
    "arb": "ar", "deu": "de", "fra": "fr", "hin": "hi", "jpn": "ja", "kor": "ko", "rus": "ru", "spa": "es",
    "swa": "sw", "zho": "zh", "eng": "en",
}  # fmt: skip


def read(paths: Sequence[Path], most: int) -> list[str]:
    """About `most` documents, as many of each file; the interpreter's own sources where none is given."""
    if not paths:
        paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:most]
    share = -(-most // len(paths))
    return [text for path in paths for text in islice(_documents(path), share)]


def _documents(path: Path) -> Iterator[str]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "replace")
    if path.suffix == ".jsonl":
        yield from (json.loads(line)["text"] for line in text.splitlines())
    else:
        yield from divide(text, DOCUMENT_CHARACTERS)


def theirs() -> dict[str, Callable[[str], str | None]]:
    """Datatrove's chains: what they leave of a text, None of one that is dropped."""
    from datatrove.data import Document
    from datatrove.pipeline import filters as f

    chains = {
        "gopher": [f.GopherQualityFilter(), f.GopherRepetitionFilter()],
        "c4": [f.C4QualityFilter()],
        "fineweb": [
            f.GopherRepetitionFilter(), f.GopherQualityFilter(), f.C4QualityFilter(filter_no_terminal_punct=False),
            f.FineWebQualityFilter(),
        ],
    }  # fmt: skip

    def decide(chain: Sequence[Any]) -> Callable[[str], str | None]:
        def left(text: str) -> str | None:
            document = Document(text=text, id="")
            for step in chain:
                outcome = step.filter(document)
                if not (outcome[0] if isinstance(outcome, tuple) else outcome):
                    return None
            return document.text

        return left

    return {name: decide(chain) for name, chain in chains.items()}


def _ours(name: str, text: str) -> str | None:
    outcome = clean(text, PRESETS[name])  # type: ignore[index]
    return None if isinstance(outcome, Broken) else outcome.text


def _timed(
    decide: Callable[[str], str | None], texts: Sequence[str], *, warm: bool = False
) -> tuple[float, list[str | None]]:
    from datatrove.utils.text import split_into_parts

    split_into_parts.cache_clear()
    if not warm:
        lexicon.forget()
    began = time.process_time()
    outcomes = [decide(text) for text in texts]
    return len(texts) / (time.process_time() - began), outcomes


def languages(folder: Path, most: int) -> dict[str, Any]:
    """Accuracy of language identification on the lines of labelled files, over all and by language."""
    right: dict[str, int] = {}
    seen: dict[str, int] = {}
    for file in sorted(folder.rglob("*.t[xs][tv]")):
        label = re.split(r"[._]", file.stem)[-1].partition("-")[0]
        language = THREE_LETTERS.get(label, label)
        if language not in identifiable() or file.stem == label:
            continue
        for line in file.read_text(encoding="utf-8").splitlines()[:most]:
            text = line.rpartition("\t")[0] or line
            seen[language] = seen.get(language, 0) + 1
            right[language] = right.get(language, 0) + (identify(text).code == language)
    by_language = {name: round(right[name] / count, 4) for name, count in sorted(seen.items())}
    lines = sum(seen.values())
    made = row("languages told right", [100 * sum(right.values()) / max(lines, 1)], "% of lines", {}, None)
    return made | {"lines": lines, "by_language": by_language}


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help=".jsonl with a field text, or plain text; also .gz")
    parser.add_argument("--quick", action="store_true", help="few documents, under a minute")
    parser.add_argument("--documents", type=int, default=400, help="of all files together")
    parser.add_argument("--languages", type=Path, metavar="FOLDER", help="labelled lines to identify")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    chosen = parser.parse_args()
    texts = read(chosen.files, QUICK_DOCUMENTS if chosen.quick else chosen.documents)
    rows = []
    for name, peer in theirs().items():
        peer(texts[0])  # spaCy's tokenizer is made at the first call
        speeds: dict[str, list[float]] = {"cold": [], "warm": [], "datatrove": []}
        different: list[str] = []
        for _ in range(2 if chosen.quick else 3):
            speed, us = _timed(lambda text, name=name: _ours(name, text), texts)  # type: ignore[misc]
            speeds["cold"].append(speed)
            speed, _ = _timed(lambda text, name=name: _ours(name, text), texts, warm=True)  # type: ignore[misc]
            speeds["warm"].append(speed)
            speed, them = _timed(peer, texts)
            speeds["datatrove"].append(speed)
            different = [text for text, a, b in zip(texts, us, them, strict=True) if a != b]
        for text in different:
            print(f"decided differently by {name}: {text[:200]!r}", file=sys.stderr)
        for state in ("cold", "warm"):
            made = row(f"{name}, {state}", speeds[state], "documents/s", {"datatrove": speeds["datatrove"]}, None)
            rows.append(made | {"documents": len(texts), "different": len(different)})
    if chosen.languages:
        rows.append(languages(chosen.languages, 40 if chosen.quick else 500))
    finish("data_filters", rows, save=chosen.save)


if __name__ == "__main__":
    main()
