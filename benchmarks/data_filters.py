"""Filters of documents against datatrove: documents a second of one core, and whether they decide alike.

Both sides run the same recipe on the same documents in turn, in one process, timed by the processor's own clock; a
difference is printed with its document. datatrove's words of English come from spaCy's blank tokenizer, which needs no
download. Needs datatrove and spacy (`pip install datatrove spacy`).
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from interleaved import finish, row

from lmworks.data.cleaning.filters import PRESETS
from lmworks.data.cleaning.normalize import divide
from lmworks.data.cleaning.rules import Broken, clean

DOCUMENT_CHARACTERS = 5_000


def read(paths: Sequence[Path], most: int) -> list[str]:
    """Up to `most` documents of each file; the interpreter's own sources where none is given."""
    if not paths:
        paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:most]
    return [text for path in paths for text in list(_documents(path))[:most]]


def _documents(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
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


def _timed(decide: Callable[[str], str | None], texts: Sequence[str]) -> tuple[float, list[str | None]]:
    from datatrove.utils.text import split_into_parts

    split_into_parts.cache_clear()
    began = time.process_time()
    outcomes = [decide(text) for text in texts]
    return len(texts) / (time.process_time() - began), outcomes


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help=".jsonl with a field text, or plain text")
    parser.add_argument("--quick", action="store_true", help="few documents, under a minute")
    parser.add_argument("--save", action="store_true", help="keep the result in results/")
    chosen = parser.parse_args()
    texts = read(chosen.files, 40 if chosen.quick else 1000)
    rows = []
    for name, peer in theirs().items():
        speeds: dict[str, list[float]] = {"ours": [], "datatrove": []}
        different: list[str] = []
        for _ in range(3):
            speed, us = _timed(lambda text, name=name: _ours(name, text), texts)  # type: ignore[misc]
            speeds["ours"].append(speed)
            speed, them = _timed(peer, texts)
            speeds["datatrove"].append(speed)
            different = [text for text, a, b in zip(texts, us, them, strict=True) if a != b]
        for text in different:
            print(f"decided differently by {name}: {text[:200]!r}", file=sys.stderr)
        made = row(name, speeds["ours"], "documents/s", {"datatrove": speeds["datatrove"]}, None)
        rows.append(made | {"documents": len(texts), "different": len(different)})
    finish("data_filters", rows, save=chosen.save)


if __name__ == "__main__":
    main()
