"""A quality filter learned from prose and spam: it divides what it never saw, and a corpus uses it."""

import json
import random
import textwrap

import numpy as np
import pytest

from lmworks.core.errors import ArtifactError, DataError
from lmworks.core.lineage import verify
from lmworks.data.cleaning.quality import QualityModel, features, fit
from lmworks.data.corpus.filter_figures import area_under_roc, measure
from lmworks.data.corpus.prepare import PrepareConfig, prepare
from lmworks.data.corpus.train_filter import TrainFilterConfig, divided, examples, train_filter

SPAM = (
    "click here to buy now", "limited time offer", "best price guaranteed", "free shipping on all orders",
    "sign up for our newsletter", "accept cookies to continue", "share on facebook", "add to cart",
    "100% money back", "call now", "lose weight fast", "earn cash from home", "cheap pills online",
    "home about contact login", "all rights reserved", "subscribe today", "hot deals", "visit our site",
)  # fmt: skip


def prose():
    """Paragraphs of the interpreter's own documentation strings."""
    import argparse
    import email.message
    import logging
    import pathlib
    import random as random_module
    import statistics
    import unittest.mock

    found = set()
    for module in (
        argparse,
        email.message,
        logging,
        pathlib,
        random_module,
        statistics,
        unittest.mock,
        textwrap,
    ):
        for thing in vars(module).values():
            for owner in (thing, *(vars(thing).values() if isinstance(thing, type) else ())):
                said = getattr(owner, "__doc__", None)
                text = " ".join(said.split()) if isinstance(said, str) else ""
                if len(text) > 120:
                    found.add(text[:400])
    return sorted(found)


def spam(count):
    rng = random.Random(0)
    return [" ".join(f"{line}!" for line in rng.choices(SPAM, k=rng.randint(4, 9))) for _ in range(count)]


def save(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filter")
    config = TrainFilterConfig(
        good=(save(folder / "good.jsonl", prose()),), bad=(save(folder / "bad.jsonl", spam(200)),),
        output=folder / "filter", buckets=1 << 14,
    )  # fmt: skip
    return folder, config, train_filter(config)


def test_unseen_prose_is_told_from_unseen_spam(trained):
    _, config, manifest = trained
    half = next(row for row in manifest.metrics["thresholds"] if row["threshold"] == 0.5)
    assert min(half["precision"], half["recall"], manifest.metrics["area_under_roc"]) > 0.95
    assert min(manifest.metrics["held_out_good"], manifest.metrics["held_out_bad"]) >= 20
    scores = QualityModel.load(config.output).scores(
        ["Return the median of the values, which have to be sorted; the list is not changed.", "Buy now! Free pills!"]
    )
    assert scores[0] > 0.5 > scores[1]


def test_the_same_texts_give_the_same_filter(trained):
    folder, config, manifest = trained
    train_filter(config.model_copy(update={"output": folder / "again"}))
    assert verify(folder / "again").files == manifest.files


def test_a_corpus_drops_what_the_filter_rejects(trained):
    folder, config, _ = trained
    mixed = save(folder / "mixed.jsonl", [*prose()[:20], *spam(220)[200:]])
    kept = prepare(
        PrepareConfig.parse(
            {"inputs": [str(mixed)], "output": str(folder / "c"), "preset": "none", "dedup": {"near": False},
             "quality": {"model": str(config.output), "threshold": 0.5}}
        )
    )  # fmt: skip
    report = json.loads((folder / "c/report.json").read_text())
    rule = next(rule for rule in report["rules"] if rule["preset"] == "quality")
    assert (rule["name"], rule["dropped"]) == ("below_threshold", 20)
    assert all(sample["value"] < 0.5 for sample in rule["samples"])
    assert kept.metrics["train_documents"] + kept.metrics["validation_documents"] == 20
    row = json.loads((folder / "c/train.jsonl").read_text().splitlines()[0])
    assert row["meta"]["quality"] >= 0.5
    assert {parent.role for parent in kept.parents} == {"inputs.0", "quality.model"}


def test_too_few_texts_and_no_filter_are_named(tmp_path):
    good, bad = save(tmp_path / "good.jsonl", prose()), save(tmp_path / "bad.jsonl", spam(3))
    with pytest.raises(DataError, match="3 bad texts are too few"):
        train_filter(TrainFilterConfig(good=(good,), bad=(bad,), output=tmp_path / "f"))
    config = {"inputs": [str(good)], "output": str(tmp_path / "c"), "quality": {"model": str(tmp_path)}}
    with pytest.raises(ArtifactError, match="no quality filter"):
        prepare(PrepareConfig.parse(config))


def test_pieces_of_a_document_stay_on_one_side_and_few_texts_are_enough(tmp_path):
    long = [" ".join(f"{word}{n}" for n in range(200)) for word in ("plum", "pear", "fig", "rust", "mud", "dust")]
    config = TrainFilterConfig(
        good=(save(tmp_path / "good.jsonl", long),), bad=(tmp_path,), output=tmp_path / "f", max_characters=100
    )
    texts = examples(config.good, config)
    learned, held = divided(texts, "good", 0.2)
    assert len(learned) + len(held) == len(texts) > 60
    assert not {piece.split()[0][:3] for piece in learned} & {piece.split()[0][:3] for piece in held}
    ten = examples((save(tmp_path / "ten.jsonl", [words[:90] for words in prose()[:10]]),), config)
    assert list(map(len, divided(ten, "good", 0.2))) == [5, 5]
    one = examples((save(tmp_path / "one.jsonl", [" ".join(long)]),), config)
    with pytest.raises(DataError, match="pieces of too few documents"):
        divided(one, "good", 0.2)


def test_rows_without_the_field_are_told_of(tmp_path):
    good = save(tmp_path / "good.jsonl", prose())
    config = TrainFilterConfig(good=(good,), bad=(good,), output=tmp_path / "f", text_field="body")
    with pytest.raises(DataError, match=r"cannot be read, .*good\.jsonl"):
        train_filter(config)


def test_a_text_is_a_unit_vector_of_its_ngrams():
    (found, values), (nothing, none), (one, _) = features(["red red blue", "…", "Red!"], 1 << 20, 2)
    assert len(found) == 4  # red, blue, red red, red blue
    assert np.linalg.norm(values) == pytest.approx(1.0)
    assert values.max() == pytest.approx(np.log(3) / np.sqrt(np.log(3) ** 2 + 3 * np.log(2) ** 2))
    assert len(nothing) == len(none) == 0
    assert set(one) < set(found)


def test_training_finds_the_sign_of_each_word():
    texts = ["plum pear", "plum fig", "rust dust", "rust mud"] * 5
    good = np.asarray([True, True, False, False] * 5)
    model = fit(texts, good, buckets=1 << 12, ngram=1, epochs=20, lr=0.3, seed=0)
    scores = model.scores(["plum", "rust", "unseen"])
    assert scores[0] > 0.8
    assert scores[1] < 0.2
    assert 0.3 < scores[2] < 0.7


def test_precision_recall_and_area():
    scores, good = np.asarray([0.9, 0.8, 0.6, 0.4, 0.2]), np.asarray([True, False, True, True, False])
    measured = measure(scores, good, 0.5)
    assert (measured.precision, measured.recall) == (2 / 3, 2 / 3)
    assert measure(scores, good, 1.0).precision == 1.0
    assert area_under_roc(scores, good) == pytest.approx(4 / 6)
    assert area_under_roc(np.zeros(5), good) == 0.5
