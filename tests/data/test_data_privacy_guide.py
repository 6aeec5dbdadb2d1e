"""The guide to personal data and erasure runs as it reads."""

import json
import random
import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from lmworks.cli.main import cli
from lmworks.data.privacy.replacements import label

GUIDE = (Path(__file__).resolve().parents[2] / "docs/guides/privacy-and-erasure.md").read_text(encoding="utf-8")
KEY = b"0123456789abcdef"


def letter(number):
    rng = random.Random(number)
    words = [f"{a}{b}{c}" for a in "bdgklmn" for b in "aeiou" for c in "lmnrst"]
    return f"{' '.join(rng.choices(words, k=60))} ada{number}@mail.example {' '.join(rng.choices(words, k=30))}."


def test_the_guide_runs_as_it_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"letters-{n:02}", "text": letter(n)} for n in range(12)]
    Path("letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("vault.key").write_bytes(KEY)
    Path("vault.key").chmod(0o600)
    quiz = {"question": " ".join(letter(3).split()[:30]), "answer": "yes"}
    Path("quiz.jsonl").write_text(json.dumps(quiz) + "\n")
    named = label(KEY, "EMAIL_ADDRESS", "ada7@mail.example")
    Path("letter.txt").write_text(f"Write to {named}.\n")
    said = {}
    for kind, block in re.findall(r"```(sh|yaml)\n(.*?)```", GUIDE, re.DOTALL):
        if kind == "yaml":
            Path(block.splitlines()[0].removeprefix("# ")).write_text(block)
            continue
        words = shlex.split(block)
        if words[0] != "pip":
            assert words[0] == "lmworks"
            result = CliRunner().invoke(cli, words[1:])
            assert result.exit_code == 0, (block, result.output, result.exception)
            said[block.strip()] = result.output
    corpus = "".join(Path(f"runs/corpus/{split}.jsonl").read_text() for split in ("train", "validation"))
    assert "@" not in corpus
    assert "letters-03" not in corpus, "it holds an item of the quiz"
    assert "letters-07" not in corpus, "it was erased"
    assert corpus.count("letters-") == 10
    assert named not in Path("runs/corpus.vault.jsonl").read_text()
    revealed, listed, removed = list(said.values())[1:]
    assert revealed == "Write to ada7@mail.example.\n"
    assert "holds it: runs/corpus" in listed
    assert "Nothing was changed" in listed
    assert "removed from: runs/corpus" in removed
