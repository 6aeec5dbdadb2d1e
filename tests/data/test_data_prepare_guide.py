"""The guide to preparing a corpus runs as it reads, on small files of a reader's own."""

import json
import random
import re
import shlex
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from click.testing import CliRunner

from lmworks.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/guides/prepare-a-corpus.md").read_text(encoding="utf-8")
FENCE = re.compile(r"```(sh|yaml)\n(.*?)```", re.DOTALL)
WORDS = sorted(set(re.findall(r"\b[a-z]{4,9}\b", " ".join(topics.values()))))

POEM = (
    "秋天的桥上有人看着河水，慢慢地想起从前的朋友和家乡的山，心里觉得很安静，也很想念他们。"
    "夜里下起了小雨，远处传来船夫唱歌的声音，灯光照在湿润的石头上，像许多年前离开村子的那个早晨。"
)


def article(seed: int) -> str:
    """Sentences of English words that no other article has."""
    rng = random.Random(seed)
    lines = []
    for _ in range(12):
        some = rng.choices(WORDS, k=9)
        lines.append(f"The {' '.join(some[:3])} of {' '.join(some[3:6])} that {' '.join(some[6:])}.")
    return " ".join(lines)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader stands, with what the guide names."""
    articles = [{"text": article(seed), "id": f"article-{seed}"} for seed in range(60)]
    rows(tmp_path / "articles.jsonl", [*articles, {**articles[0], "license": "CC-BY-NC-4.0"}])
    rows(tmp_path / "benchmark.jsonl", [{"question": "Which arch of a bridge sank into the river Severn in 1795?"}])
    rows(tmp_path / "good.jsonl", articles)
    spam = ("buy now", "click here", "free offer", "sign up", "best price", "add to cart", "subscribe today")
    rows(tmp_path / "bad.jsonl", [{"text": " ".join(spam[i % n] for i in range(n + 9))} for n in range(1, 8)])
    with (tmp_path / "bad.jsonl").open("a") as sink:
        sink.writelines(json.dumps({"text": f"{a}! {b}! {c}!"}) + "\n" for a in spam for b in spam for c in spam)
    (tmp_path / "harmful.txt").write_text("vile\n")
    (tmp_path / "poems").mkdir()
    (tmp_path / "poems/bridge.txt").write_text(POEM)
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs/bridge.py").write_text("def span(arches, width):\n    return arches * width\n")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmworks.train.pretrain.plot_run", lambda *_: None)
    return tmp_path


def rows(path: Path, values: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in values))


def test_the_guide_runs_as_it_reads(reader: Path) -> None:
    said = {}
    for kind, block in FENCE.findall(GUIDE):
        if kind == "yaml":
            (reader / block.splitlines()[0].removeprefix("# ")).write_text(block, encoding="utf-8")
            continue
        for command in block.splitlines():
            if "recipes/corpus.yaml" in command:  # fetches; its small form has a test of its own
                continue
            result = CliRunner().invoke(cli, shlex.split(command)[1:])
            assert result.exit_code == 0, (command, result.output, result.exception)
            said[command] = result.output
    report = json.loads((reader / "runs/mine/report.json").read_text())
    assert {row["name"]: row["dropped"] for row in report["funnel"]}["license"] == 1
    assert report["languages"]["zh"]["documents"] == 1
    assert report["languages"]["en"]["documents"] > 5
    assert "precision" in said[next(command for command in said if "train-filter" in command)]
    traced = json.loads(said[next(command for command in said if "--row" in command)])
    known = {json.loads(line)["id"] for line in (reader / "runs/mine/train.jsonl").read_text().splitlines()}
    assert {document["id"] for document in traced} <= known
