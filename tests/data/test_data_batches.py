"""Rows cleaned elsewhere are those of `data prepare`; the guide's programs for Spark and Beam run as they read."""

import json
import pickle
import random
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from lmworks.data.corpus.batches import COLUMNS, CleanRows
from lmworks.data.corpus.prepare import PrepareConfig, prepare

GUIDE = Path(__file__).resolve().parents[2] / "docs/guides/prepare-a-corpus.md"
WORDS = sorted(set(re.findall(r"\b[a-z]{4,9}\b", " ".join(topics.values()))))


def article(rng, sentences):
    return " ".join(
        f"The {' '.join(rng.choices(WORDS, k=5))} that {' '.join(rng.choices(WORDS, k=3))}." for _ in range(sentences)
    )


@pytest.fixture
def articles(tmp_path, monkeypatch):
    """Documents too short, long enough, and in need of division; some hold an address."""
    rng = random.Random(4)
    rows = [{"id": f"a{n}", "text": article(rng, (1, 12, 40)[n % 3])} for n in range(24)]
    for row in rows[::5]:
        row["text"] += " Write to somebody@example.org for more of it."
    (tmp_path / "articles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return rows


@pytest.fixture
def config():
    return PrepareConfig(
        inputs=("articles.jsonl",), output="runs/whole", min_words=20, max_characters=1000, validation_fraction=0.0,
        pii={}, license="CC0-1.0", runner={"workers": 1},
    )  # fmt: skip


def told(rows):
    return sorted((row["id"], row["text"], row["license"]) for row in rows)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_come_out_as_from_the_stage(articles, config):
    prepare(config)
    whole = told(lines(Path("runs/whole/train.jsonl")))
    assert len(whole) > len(articles), "some are divided"
    assert any("<EMAIL_ADDRESS>" in text for _, text, _ in whole)
    clean = pickle.loads(pickle.dumps(CleanRows(config)))
    assert told(clean(articles)) == whole
    assert told(row for article in articles[::-1] for row in clean([article])) == whole


def test_rows_without_text_give_nothing_and_what_is_known_goes_through(config):
    text = article(random.Random(1), 12)
    clean = CleanRows(config)
    assert not [*clean([{}, {"text": None}, {"text": " "}, {"text": 3}, {"text": text + "\ud800"}])]
    given = {"text": text, "source": "shelf/3", "license": "MIT", "meta": {"url": "http://a"}}
    (kept,) = clean([given])
    assert tuple(kept) == COLUMNS
    assert (kept["source"], kept["license"], json.loads(kept["meta"])) == ("shelf/3", "MIT", {"url": "http://a"})
    assert [*clean([{**given, "meta": '{"url": "http://a"}'}])] == [kept]
    assert len({row["id"] for row in clean([{"text": text}, {"text": text}, {"text": "Well. " + text}])}) == 2


@pytest.mark.slow  # Spark starts a Java machine
@pytest.mark.parametrize(
    "engine",
    [
        "pyspark",
        pytest.param(
            "apache_beam",
            marks=pytest.mark.skipif(
                find_spec("apache_beam") is None,
                reason="Beam takes older pyarrow and protobuf: an environment of its own",
            ),
        ),
    ],
)
def test_spark_and_beam_write_what_the_stage_does(articles, engine):
    program = next(code for code in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL) if engine in code)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)
    made = [row for file in Path("runs/cleaned").glob("part*.json*") for row in lines(file)]
    config = PrepareConfig(
        inputs=("articles.jsonl",), output="runs/whole", preset="prose", validation_fraction=0.0, pii={}
    )
    prepare(config)
    assert told(made) == told(lines(Path("runs/whole/train.jsonl")))
