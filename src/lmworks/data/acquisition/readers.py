"""From the members of a source's archive to its rows: one small generator for each source.

A row here is what a reader alone knows (text, messages or question, and the `source` within the set);
identity and licence are added by the fetch stage. Knows neither archives nor indexes.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from lmworks.data.acquisition.wiki_questions import question_and_answer

Members = Iterable[tuple[str, IO[bytes]]]
Row = dict[str, Any]
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def wikipedia_intros(members: Members) -> Iterator[Row]:
    """The introductions, in the package's order."""
    for title, entry in _articles(members):
        yield {"text": entry["extract"], "source": title}


def wiki_questions(members: Members) -> Iterator[Row]:
    """One conversation for each article."""
    for title, entry in _articles(members):
        question, answer = question_and_answer(title, entry["extract"], entry.get("topic") == "People")
        yield {
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            "source": title,
        }


def _articles(members: Members) -> Iterator[tuple[str, Row]]:
    for _, stream in members:
        for title, entry in json.load(stream).items():
            if entry.get("extract", "").strip():
                yield title, entry


def boolq_passages(members: Members) -> Iterator[Row]:
    """Every different passage once, in order of appearance, with its LaTeX quotes made plain."""
    seen = set()
    for _, stream in members:
        for line in stream:
            passage = json.loads(line)["passage"]
            if passage not in seen:
                seen.add(passage)
                text = passage.replace("``", '"').replace("''", '"')
                yield {"text": text, "source": passage.partition(" -- ")[0][:80]}


def boolq_questions(members: Members) -> Iterator[Row]:
    """Labelled questions; those of BoolQ's development file are the `validation` split, the others `train`."""
    files = {name.rpartition("/")[2]: stream.read() for name, stream in members}
    held_out = {json.loads(line)["question"] for line in files["dev.jsonl"].splitlines()}
    for line in files["combined.jsonl"].splitlines():
        row = json.loads(line)
        if "label" in row:
            yield {
                "question": row["question"],
                "passage": row["passage"],
                "label": bool(row["label"]),
                "split": "validation" if row["question"] in held_out else "train",
                "source": row["passage"].partition(" -- ")[0][:80],
            }


def alpaca(members: Members) -> Iterator[Row]:
    """Instruction, optional input and output as a conversation of two turns."""
    for name, stream in members:
        for number, row in enumerate(json.load(stream), 1):
            request = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
            yield {
                "messages": [{"role": "user", "content": request}, {"role": "assistant", "content": row["output"]}],
                "source": f"{name.rpartition('/')[2]}:{number}",
            }


def chinese_poetry(members: Members) -> Iterator[Row]:
    """Title (or tune), author and lines of each poem."""
    for name, stream in members:
        if name.rpartition("/")[2].startswith(("poet.", "ci.song.")):
            for poem in json.load(stream):
                heading = poem.get("title") or poem.get("rhythmic", "")
                body = "\n".join(poem.get("paragraphs", ()))
                if body:
                    yield {
                        "text": f"{heading}\n{poem.get('author', '')}\n\n{body}",
                        "source": f"{poem.get('author', '')}: {heading}",
                    }


def state_of_the_union(members: Members) -> Iterator[Row]:
    """One message of a president a year."""
    for name, stream in members:
        yield {"text": stream.read().decode("utf-8"), "source": name.rpartition("/")[2].removesuffix(".txt")}


def stdlib_code(members: Members) -> Iterator[Row]:
    """The standard library's modules that are valid UTF-8 and not empty, by path."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        place = file.relative_to(root)
        if not _NOT_LIBRARY & set(place.parts):
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            if text.strip():
                yield {"text": text, "source": place.as_posix()}
