"""Filters of documents against datatrove: documents a second of one core, and whether they decide alike.

Both sides run the same recipe on the same documents in turn, in one process, timed by the processor's own clock, each
time having forgotten all words; `warm` is ours once more with them remembered, as it is after the first megabytes of a
corpus. A difference is printed with its document. datatrove's words of English come from spaCy's blank tokenizer, which
needs no download. Needs datatrove and spacy (`pip install datatrove spacy`). The documents are those given, or what is
installed beside this program: its manuals and licences, and sources of Python.

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
from itertools import chain, islice
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
LEAST_BYTES = 1_000
THREE_LETTERS = {
    "afr": "af", "amh": "am", "arb": "ar", "aze": "az", "bak": "ba", "bel": "be", "ben": "bn", "bos": "bs",
    "bul": "bg", "cat": "ca", "ces": "cs", "cym": "cy", "dan": "da", "deu": "de", "dzo": "dz", "ell": "el",
    "eng": "en", "est": "et", "eus": "eu", "fao": "fo", "fas": "fa", "fil": "tl", "fin": "fi", "fra": "fr",
    "fuc": "fuv", "gle": "ga", "glg": "gl", "guj": "gu", "hau": "ha", "heb": "he", "hin": "hi", "hrv": "hr",
    "hun": "hu", "hye": "hy", "ibo": "ig", "ind": "id", "isl": "is", "ita": "it", "jpn": "ja", "kan": "kn",
    "kat": "ka", "kaz": "kk", "khm": "km", "kin": "rw", "kir": "ky", "kmr": "ku", "kor": "ko", "lao": "lo",
    "lav": "lv", "lit": "lt", "ltz": "lb", "mal": "ml", "mar": "mr", "mkd": "mk", "mlg": "mg", "mlt": "mt",
    "mon": "mn", "msa": "ms", "mya": "my", "nep": "ne", "nld": "nl", "nno": "nn", "nob": "no", "orm": "om",
    "pan": "pa", "pol": "pl", "por": "pt", "prs": "fa", "pus": "ps", "ron": "ro", "rus": "ru", "sin": "si",
    "slk": "sk", "slv": "sl", "sna": "sn", "som": "so", "spa": "es", "sqi": "sq", "srp": "sr", "swa": "sw",
    "swe": "sv", "tam": "ta", "tat": "tt", "tel": "te", "tgk": "tg", "tha": "th", "tuk": "tk", "tur": "tr",
    "uig": "ug", "ukr": "uk", "urd": "ur", "uzb": "uz", "vie": "vi", "xho": "xh", "yor": "yo", "zho": "zh",
    "zul": "zu",
}  # fmt: skip
"""ISO 639-3 of NTREX by the codes of the identifier; others are the same."""


def read(paths: Sequence[Path], most: int) -> list[str]:
    """About `most` documents, as many of each file; those of this installation where none is given."""
    paths = paths or _installed()
    share = -(-most // len(paths))
    texts = (islice(_documents(path), share) for path in paths[:: max(len(paths) // most, 1)])
    return list(islice(chain.from_iterable(texts), most))


def _installed() -> list[Path]:
    places = sysconfig.get_paths()
    found = [*Path(places["stdlib"]).glob("*.py")]
    for ending in ("md", "rst", "txt"):
        found += Path(places["purelib"]).rglob(f"*.{ending}")
    return sorted(path for path in found if path.stat().st_size > LEAST_BYTES)


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

    recipes = {
        "gopher": [f.GopherQualityFilter(), f.GopherRepetitionFilter()],
        "c4": [f.C4QualityFilter()],
        "fineweb": [
            f.GopherRepetitionFilter(), f.GopherQualityFilter(), f.C4QualityFilter(filter_no_terminal_punct=False),
            f.FineWebQualityFilter(),
        ],
    }  # fmt: skip

    def decide(steps: Sequence[Any]) -> Callable[[str], str | None]:
        def left(text: str) -> str | None:
            document = Document(text=text, id="")
            for step in steps:
                outcome = step.filter(document)
                if not (outcome[0] if isinstance(outcome, tuple) else outcome):
                    return None
            return document.text

        return left

    return {name: decide(steps) for name, steps in recipes.items()}


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
    """Accuracy of language identification on the lines of labelled files, over all and by the files' labels."""
    right: dict[str, list[bool]] = {}
    for file in sorted(folder.rglob("*.t[xs][tv]")):
        label = re.split(r"[._]", file.stem)[-1]
        language = label.partition("-")[0]
        language = THREE_LETTERS.get(language, language)
        if language not in identifiable() or file.stem == label:
            continue
        for line in file.read_text(encoding="utf-8").splitlines()[:most]:
            text = line.rpartition("\t")[0] or line
            right.setdefault(label, []).append(identify(text).code == language)
    by_label = {label: round(sum(told) / len(told), 4) for label, told in right.items()}
    lines = sum(map(len, right.values()))
    made = row("languages told right", [100 * sum(map(sum, right.values())) / max(lines, 1)], "% of lines", {}, None)
    reached = sum(share >= 0.95 for share in by_label.values())
    return made | {"lines": lines, "labels": len(by_label), "labels_of_95_percent": reached, "by_language": by_label}


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help=".jsonl with a field text, or plain text; also .gz")
    parser.add_argument("--quick", action="store_true", help="few documents, under a minute")
    parser.add_argument("--documents", type=int, default=1200, help="of all files together")
    parser.add_argument("--rounds", type=int, default=5, help="how often both sides run")
    parser.add_argument("--languages", type=Path, metavar="FOLDER", help="labelled lines to identify")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    chosen = parser.parse_args()
    texts = read(chosen.files, QUICK_DOCUMENTS if chosen.quick else chosen.documents)
    rows = []
    for name, peer in theirs().items():
        peer(texts[0])  # spaCy's tokenizer is made at the first call
        speeds: dict[str, list[float]] = {"cold": [], "warm": [], "datatrove": []}
        different: list[str] = []
        for _ in range(2 if chosen.quick else chosen.rounds):
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
