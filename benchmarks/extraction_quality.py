"""How well HTML and PDF become text, against documents that ship with the text they were made from.

Manuals of Debian packages come as HTML and PDF beside plain text or the reStructuredText of the same words; pypdf's
sdist has PDFs that are awkward in known ways. Both are fetched once with `apt-get download` and `pip download`. Scored
are words (F1, precision and recall of multisets) and, for their order, runs of four words; Han characters and kana
count as words each, addresses and tables of contents do not count. Needs pypdf, pdfminer.six and resiliparse beside the
extra `data`.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import random
import re
import subprocess
import sys
import tarfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from interleaved import finish, row

from lmworks.core.errors import LMWorksError
from lmworks.data.extraction.html import read_html
from lmworks.data.extraction.pdf import read_pdf

CACHE = Path.home() / ".cache" / "lmworks" / "benchmarks" / "extraction"
PACKAGES = (
    "debian-policy",
    "debian-reference-en",
    "debian-reference-zh-cn",
    "debian-faq",
    "python3.11-doc",
    "linux-doc-6.1",
)
AWKWARD = "pypdf==7.1.0"
RUN = 4
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
_CONTENTS = re.compile(r"^(?:Table of Contents|目录)\n(?:\s*\n|\s*(?:\d+|[A-Z])(?:\.\d+)*\.? .*\n)*", re.MULTILINE)
_NO_TEXT = re.compile(
    r"^\.\. (?:toctree|index|contents|highlight|module|sectionauthor|moduleauthor|currentmodule|_|SPDX|include|image"
    r"|figure|testsetup|comment|only|raw)[^\n]*\n(?:[ \t]+[^\n]*\n|\n(?=[ \t]))*",
    re.MULTILINE,
)
Extractor = Callable[[bytes], str]


@dataclass(frozen=True)
class Case:
    """Files whose texts together are the truth."""

    files: Sequence[bytes]
    truth: str


def fetch() -> Path:
    """The folder of the unpacked packages, which are brought once."""
    done = CACHE / "unpacked"
    if not done.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=CACHE, check=True)
        staging = CACHE / f"unpacking-{os.getpid()}"
        for package in CACHE.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, staging], check=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", AWKWARD]
        subprocess.run(pip, cwd=CACHE, check=True)
        with tarfile.open(next(CACHE.glob("pypdf-*.tar.gz"))) as archive:
            archive.extractall(staging, filter="data")
        staging.rename(done)
    return done


def plain(source: str) -> str:
    """ReStructuredText without what never reaches the page."""
    source = re.sub(r"^\.\. [\w-]+::", "", _NO_TEXT.sub("", source), flags=re.MULTILINE)
    source = re.sub(r"^\s+:[\w-]+:.*$", "", source, flags=re.MULTILINE)
    source = re.sub(r":[\w:+-]+:`(?:[^`<]*<)?~?!?([^`>]*)>?`", r"\1", source)
    return re.sub(r"`([^`<]+?)\s*<[^`>]+>`__?", r"\1", source)


def _packed(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def pdf_cases(root: Path) -> dict[str, list[Case]]:
    """Whole manuals, and the awkward files that have their text beside them."""
    share = root / "usr" / "share"
    policy, faq, reference = share / "doc/debian-policy", share / "doc/debian/FAQ", share / "debian-reference"
    cases = {
        "policy": [Case([_packed(policy / "policy.pdf.gz")], _packed(policy / "policy.txt.gz").decode())],
        "faq": [Case([_packed(faq / "debian-faq.en.pdf.gz")], _packed(faq / "debian-faq.en.txt.gz").decode())],
    }
    for language in ("en", "zh-cn"):
        text = _packed(reference / f"debian-reference.{language}.txt.gz").decode()
        cases[f"reference {language}"] = [Case([(reference / f"debian-reference.{language}.pdf").read_bytes()], text)]
    awkward = next(root.glob("pypdf-*")) / "resources"
    cases["awkward with text"] = [
        Case([(awkward / f"{name}.pdf").read_bytes()], (awkward / f"{name}.txt").read_text(encoding="utf-8"))
        for name in ("crazyones", "010-pdflatex-forms")
        if (awkward / f"{name}.pdf").exists()
    ]
    return cases


def html_cases(root: Path, most: int) -> dict[str, list[Case]]:
    """Pages beside their sources, and manuals of many pages beside one text."""
    share = root / "usr" / "share"
    cases: dict[str, list[Case]] = {}
    for name, folder, wanted in (
        ("python pages", share / "doc/python3.11/html", ""),
        ("kernel pages", share / "doc/linux-doc-6.1/html", ""),
        ("kernel pages zh", share / "doc/linux-doc-6.1/html", "translations/zh_CN"),
    ):
        found = []
        for source in sorted((folder / "_sources" / wanted).rglob("*.rst.txt")):
            inside = source.relative_to(folder / "_sources").as_posix()
            page = folder / (inside.removesuffix(".rst.txt") + ".html")
            foreign = not wanted and "translations" in inside
            if page.exists() and source.stat().st_size > 3000 and not foreign:
                text = source.read_text(encoding="utf-8", errors="replace")
                if "kernel-doc::" not in text:
                    found.append((page, text))
        chosen = random.Random(0).sample(found, min(most, len(found)))
        cases[name] = [Case([page.read_bytes()], plain(text)) for page, text in chosen]
    books = (
        ("policy", share / "doc/debian-policy/policy.html", "*.html", share / "doc/debian-policy/policy.txt.gz"),
        ("faq", share / "doc/debian/FAQ", "*.en.html", share / "doc/debian/FAQ/debian-faq.en.txt.gz"),
        ("reference en", share / "debian-reference", "*.en.html",
         share / "debian-reference/debian-reference.en.txt.gz"),
        ("reference zh-cn", share / "debian-reference", "*.zh-cn.html",
         share / "debian-reference/debian-reference.zh-cn.txt.gz"),
    )  # fmt: skip
    for name, folder, pattern, text in books:
        pages = [p for p in sorted(folder.glob(pattern)) if p.name.split(".")[0] not in ("index", "search", "genindex")]
        cases[name] = [Case([p.read_bytes() for p in pages], _packed(text).decode())]
    return cases


def words(text: str) -> list[str]:
    """What is compared."""
    text = _CONTENTS.sub("", re.sub(r"https?://\S+", " ", unicodedata.normalize("NFKC", text)))
    return _WORD.findall(text)


@dataclass(frozen=True)
class Agreement:
    """Of what was found with the truth, as multisets."""

    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Score:
    """How a contestant did on the cases of a set: means over the cases, of words and of runs of words."""

    words: Agreement
    runs: Agreement
    milliseconds: float
    """Of the processor, for a file."""


def agreement(found: Sequence[str], truth: Sequence[str], run: int) -> Agreement:
    """How runs of words agree."""
    have, want = (Counter(zip(*(side[i:] for i in range(run)), strict=False)) for side in (found, truth))
    common, of_found, of_truth = (sum(c.values()) for c in (have & want, have, want))
    return Agreement(2 * common / max(1, of_found + of_truth), common / max(1, of_found), common / max(1, of_truth))


def score(extract: Extractor, cases: Sequence[Case]) -> Score:
    """Run a contestant on the cases of a set."""
    seconds, agreements = 0.0, []
    for case in cases:
        began = time.process_time()
        text = "\n".join(extract(file) for file in case.files)
        seconds += time.process_time() - began
        found, truth = words(text), words(case.truth)
        agreements.append((agreement(found, truth, 1), agreement(found, truth, RUN)))

    def mean(place: int) -> Agreement:
        values = [(a.f1, a.precision, a.recall) for a in (pair[place] for pair in agreements)]
        return Agreement(*(sum(column) / len(values) for column in zip(*values, strict=True)))

    return Score(mean(0), mean(1), 1000 * seconds / sum(len(case.files) for case in cases))


def html_contestants() -> dict[str, Extractor]:
    """Ours and the peers; datatrove's is trafilatura with the settings of its own step."""
    import trafilatura
    from resiliparse.extract.html2text import extract_plain_text

    return {
        "ours": lambda page: read_html(page).text,
        "trafilatura": lambda page: trafilatura.extract(page.decode("utf-8"), include_comments=False) or "",
        "datatrove": lambda page: trafilatura.extract(
            page.decode("utf-8"), favor_precision=True, include_comments=False, deduplicate=True
        ) or "",
        "resiliparse": lambda page: extract_plain_text(page.decode("utf-8"), main_content=True, alt_texts=False),
    }  # fmt: skip


def pdf_contestants() -> dict[str, Extractor]:
    """Ours and the peers; `pypdfium2` is the text layer as it is, and PyMuPDF (AGPL) is there where it is installed."""
    import pypdfium2
    from pdfminer.high_level import extract_text
    from pypdf import PdfReader

    contestants: dict[str, Extractor] = {
        "ours": lambda data: read_pdf(data).text,
        "pypdfium2": lambda data: "\n".join(
            page.get_textpage().get_text_range() for page in pypdfium2.PdfDocument(data)
        ),
        "pypdf": lambda data: "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(data)).pages),
        "pdfminer": lambda data: str(extract_text(io.BytesIO(data))),
    }
    if find_spec("pymupdf"):
        import pymupdf

        contestants["pymupdf"] = lambda data: "\n".join(page.get_text() for page in pymupdf.open("pdf", data))
    return contestants


def compare(kind: str, cases: dict[str, list[Case]], contestants: dict[str, Extractor]) -> list[dict[str, object]]:
    """A row for each set and measure; prints the set's table."""
    rows = []
    for name, items in cases.items():
        scores = {who: score(extract, items) for who, extract in contestants.items()}
        print(f"{kind} {name}, {len(items)} documents", file=sys.stderr)
        for who, of in scores.items():
            numbers = " ".join(f"{a.f1:.4f} {a.precision:.4f} {a.recall:.4f} |" for a in (of.words, of.runs))
            print(f"  {who:12} F1, precision, recall: {numbers} {of.milliseconds:.1f} ms", file=sys.stderr, flush=True)
        for measure, told in (("words", "words"), ("runs", f"runs of {RUN} words")):
            agreements: dict[str, Agreement] = {who: getattr(of, measure) for who, of in scores.items()}
            ours, theirs = agreements["ours"].f1, {who: a.f1 for who, a in agreements.items() if who != "ours"}
            best = max(theirs, key=theirs.__getitem__)
            made = row(f"{kind} {name}: {told}", [ours], "F1", {who: [f] for who, f in theirs.items()}, None)
            exact = {"ours": round(ours, 4), "theirs": round(theirs[best], 4), "ratio": round(ours / theirs[best], 4)}
            rows.append(made | exact | {
                "peers": {who: round(f, 4) for who, f in theirs.items()}, "documents": len(items),
                "precision": {who: round(a.precision, 4) for who, a in agreements.items()},
                "recall": {who: round(a.recall, 4) for who, a in agreements.items()},
                "milliseconds_a_file": {who: round(of.milliseconds, 1) for who, of in scores.items()},
            })  # fmt: skip
    return rows


def readable(root: Path) -> dict[str, object]:
    """How many of the awkward PDFs give text without a password, and which only a peer reads."""
    files = {f.name: f.read_bytes() for f in sorted(next(root.glob("pypdf-*")).rglob("*.pdf"))}

    def given(extract: Extractor) -> set[str]:
        found = set()
        for name, data in files.items():
            try:
                if extract(data).strip():
                    found.add(name)
            except (LMWorksError, Exception):  # noqa: BLE001 - what damaged files make a library raise is what is counted
                continue
        return found

    read = {who: given(extract) for who, extract in pdf_contestants().items() if who != "pdfminer"}  # minutes long
    ours = read.pop("ours")
    counts = {who: [float(len(names))] for who, names in read.items()}
    made = row(f"pdf awkward: of {len(files)} give text", [float(len(ours))], "files", counts, None)
    return made | {"read_by_a_peer_alone": sorted(set().union(*read.values()) - ours)}


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few pages, under a minute once fetched")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    chosen = parser.parse_args()
    root = fetch()
    rows = compare("html", html_cases(root, 5 if chosen.quick else 60), html_contestants())
    manuals = pdf_cases(root)
    if chosen.quick:
        manuals = {"faq": manuals["faq"]}
    rows += compare("pdf", manuals, pdf_contestants())
    finish("extraction_quality", [*rows, readable(root)], save=chosen.save)


if __name__ == "__main__":
    main()
