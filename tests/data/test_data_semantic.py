"""Semantic duplicates in a corpus: what is dropped, what stays in any order of inputs, a kill, the report."""

import hashlib
import json
import random

import numpy as np
import pytest

from lmworks.core.errors import ConfigError, DataError
from lmworks.data.corpus.prepare import PrepareConfig, prepare

TOPICS = ("river", "market", "engine", "winter", "garden", "letter")
WAYS = ("they say that", "it is told how", "people know that")


class TopicEmbedder:
    """Texts of one topic point one way but for a little that depends on the words."""

    def __init__(self, spread=0.05, fail_after=None):
        self.spread, self.seen, self.fail_after = spread, [], fail_after

    def embed(self, texts):
        if self.fail_after is not None and len(self.seen) >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += texts
        return [self.one(text).tolist() for text in texts]

    def one(self, text):
        topic = next((n for n, word in enumerate(TOPICS) if word in text.lower()), None)
        noise = np.random.default_rng(int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)).normal(size=32)
        axis = np.zeros(32)
        if topic is not None:
            axis[topic] = 1.0
        vector = axis + self.spread * noise / np.linalg.norm(noise)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def text(topic, number):
    rng = random.Random(f"{topic}{number}")
    words = " ".join("".join(rng.choices("abcdefghij", k=6)) for _ in range(20 + number))
    return f"{WAYS[number % 3]} the {topic} {words}"


TEXTS = [text(topic, number) for topic in TOPICS for number in range(5)]
LONE = [f"nothing of the kind {n} " + " ".join(random.Random(n).choices("pqrstuv", k=30)) for n in range(4)]


@pytest.fixture
def embedder_folder(tmp_path):
    folder = tmp_path / "embedder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def run(tmp_path, folder, texts, name, embedder=None, **semantic):
    source = tmp_path / f"{name}.jsonl"
    source.write_text("".join(json.dumps({"text": t, "id": hashlib.md5(t.encode()).hexdigest()}) + "\n" for t in texts))
    values = {
        "inputs": [str(source)], "output": str(tmp_path / name), "preset": "none", "runner": {"workers": 1},
        "semantic": {"embedder": str(folder), **semantic}, "validation_fraction": 0.1,
    }  # fmt: skip
    manifest = prepare(PrepareConfig.parse(values), embedder or TopicEmbedder())
    files = [(tmp_path / name / f"{split}.jsonl").read_text().splitlines() for split in ("train", "validation")]
    kept = [json.loads(line)["text"] for lines in files for line in lines]
    return kept, json.loads((tmp_path / name / "report.json").read_text()), manifest


def test_one_of_each_meaning_stays(tmp_path, embedder_folder):
    kept, report, manifest = run(tmp_path, embedder_folder, [*TEXTS, *LONE], "c")
    assert len([t for t in kept if t in LONE]) == len(LONE)
    assert sorted(next(topic for topic in TOPICS if topic in t) for t in kept if t not in LONE) == sorted(TOPICS)
    assert manifest.metrics["semantic_duplicates"] == len(TEXTS) - len(TOPICS)
    row = report["funnel"][-1]
    assert (row["name"], row["dropped"], row["left"]) == ("semantic duplicates", 24, len(kept))
    assert len(report["duplicates"]["semantic"]) == 6
    for pair in report["duplicates"]["semantic"]:
        one, other = (TopicEmbedder().one(pair[side]["text"]) for side in ("dropped", "kept"))
        assert pair["cosine"] == pytest.approx(float(one @ other), abs=1e-3)
        assert pair["cosine"] >= 0.95
        assert pair["kept"]["text"] in kept
        assert pair["dropped"]["text"] not in kept
    assert report["semantic_clusters"] == [{"documents": 34, "dropped": 24}]
    assert {parent.role for parent in manifest.parents} == {"inputs.0", "semantic.embedder"}
    page = (tmp_path / "c/report.html").read_text()
    assert "dropped as semantic duplicate, cosine 0.9" in page
    assert "Clusters of like meaning" in page


@pytest.mark.parametrize("keep", ["hard", "easy", "longest"])
@pytest.mark.parametrize("clusters", [None, 5])
def test_the_order_of_the_inputs_changes_nothing(tmp_path, embedder_folder, keep, clusters):
    texts = [*TEXTS, *LONE]
    outcomes = []
    for seed in range(3):
        kept, report, _ = run(
            tmp_path, embedder_folder, random.Random(seed).sample(texts, len(texts)), f"c{seed}", keep=keep,
            clusters=clusters, threshold=0.9,
        )  # fmt: skip
        outcomes.append((sorted(kept), report["semantic_clusters"], report["duplicates"]["semantic"]))
    stripped = [
        (kept, clusters, [(p["dropped"]["text"], p["kept"]["text"]) for p in pairs])
        for kept, clusters, pairs in outcomes
    ]
    assert stripped[0] == stripped[1] == stripped[2]


def test_who_stays_is_asked_for(tmp_path, embedder_folder):
    longest, _, _ = run(tmp_path, embedder_folder, TEXTS, "longest", keep="longest")
    assert sorted(longest) == sorted(max((t for t in TEXTS if topic in t), key=len) for topic in TOPICS)
    first, _, _ = run(tmp_path, embedder_folder, TEXTS[::-1], "first", keep="first")
    assert sorted(first) == sorted(text(topic, 4) for topic in TOPICS)
    nothing, report, _ = run(tmp_path, embedder_folder, TEXTS, "nothing", threshold=1.0)
    assert len(nothing) == len(TEXTS)
    assert report["duplicates"]["semantic"] == []


def test_texts_that_others_dropped_or_without_words_are_not_embedded(tmp_path, embedder_folder):
    embedder = TopicEmbedder()
    kept, report, _ = run(tmp_path, embedder_folder, [*TEXTS[:6], TEXTS[0].upper(), "…", "!!!"], "c", embedder)
    assert len(embedder.seen) == 6
    assert {row["name"]: row["dropped"] for row in report["funnel"]} == {
        "rules": 0, "exact duplicates": 1, "near duplicates": 0, "semantic duplicates": 4
    }  # fmt: skip
    assert {"…", "!!!"} < set(kept)


def test_a_killed_run_goes_on_with_what_was_embedded(tmp_path, embedder_folder, monkeypatch):
    monkeypatch.setattr("lmworks.data.corpus.meaning._AT_ONCE", 8)
    whole, _, _ = run(tmp_path, embedder_folder, TEXTS, "whole")
    broken = TopicEmbedder(fail_after=16)
    (tmp_path / "again.jsonl").write_bytes((tmp_path / "whole.jsonl").read_bytes())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, embedder_folder, TEXTS, "again", broken)
    rest = TopicEmbedder()
    resumed, _, _ = run(tmp_path, embedder_folder, TEXTS, "again", rest)
    assert resumed == whole
    assert sorted(broken.seen + rest.seen) == sorted(TEXTS)
    assert not list(tmp_path.glob(".again*"))


def test_what_is_wrong_is_named(tmp_path, embedder_folder):
    class Broken:
        def embed(self, texts):
            return [[float("nan")] * 3 for _ in texts]

    with pytest.raises(DataError, match="has length nan"):
        run(tmp_path, embedder_folder, TEXTS, "c", Broken())
    source = tmp_path / "s.jsonl"
    source.write_text(json.dumps({"text": "one"}) + "\n")
    values = {"inputs": [str(source)], "output": str(tmp_path / "d"), "semantic": {"embedder": str(embedder_folder)}}
    with pytest.raises(ConfigError, match="needs the model"):
        prepare(PrepareConfig.parse(values))


def test_one_document_has_no_other_like_it(tmp_path, embedder_folder):
    source = tmp_path / "s.jsonl"
    source.write_text(json.dumps({"text": "the river alone"}) + "\n")
    values = {
        "inputs": [str(source)], "output": str(tmp_path / "d"), "preset": "none", "validation_fraction": 0,
        "semantic": {"embedder": str(embedder_folder), "clusters": 9},
    }  # fmt: skip
    assert prepare(PrepareConfig.parse(values), TopicEmbedder()).metrics["train_documents"] == 1
