"""A perplexity filter learned from documentation: parts, bounds, report, and what is refused."""

import json
import random
from pydoc_data.topics import topics

import numpy as np
import pytest

from lmworks.core.errors import ArtifactError, ConfigError, DataError
from lmworks.core.generation import Document
from lmworks.core.lineage import verify
from lmworks.data.cleaning.perplexity import PerplexityConfig, PerplexityModel, PerplexityStep
from lmworks.data.corpus.prepare import PrepareConfig, prepare
from lmworks.data.corpus.train_filter import TrainFilterConfig, train_filter
from lmworks.data.steps import Dropped, Tally


def save(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def shuffled(text):
    words = text.split()
    return " ".join(random.Random(0).sample(words, len(words)))


PROSE = sorted({" ".join(text.split()[at : at + 150]) for text in topics.values() for at in range(0, len(text), 150)})
PROSE = [text for text in PROSE if len(text) > 600]
LEARNED, SAMPLE, FRESH = PROSE[0::3], PROSE[1::3], PROSE[2::3]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("perplexity")
    good, bad = save(folder / "good.jsonl", LEARNED), save(folder / "bad.jsonl", map(shuffled, SAMPLE))
    sample = save(folder / "sample.jsonl", SAMPLE)
    config = TrainFilterConfig(kind="perplexity", good=(good,), bad=(bad,), sample=(sample,), output=folder / "filter")
    return folder, config, train_filter(config)


def test_it_is_measured_and_its_percentiles_are_the_samples(trained):
    _, config, manifest = trained
    assert manifest.kind == "perplexity-filter"
    assert manifest.metrics["area_under_roc"] > 0.95
    assert {parent.role for parent in manifest.parents} == {"good.0", "bad.0", "sample.0"}
    model = PerplexityModel.load(config.output)
    scores = model.words.perplexities(SAMPLE)
    assert manifest.metrics["sample"] == len(SAMPLE)
    for percent in (0, 30, 60, 100):
        assert model.at(percent) == pytest.approx(np.percentile(scores, percent))
    assert manifest.metrics["percentiles"]["30"] == round(float(np.percentile(scores, 30)), 2)


def test_the_same_texts_in_any_order_give_the_same_filter(trained):
    folder, config, manifest = trained
    turned = {side: (save(folder / f"turned-{side}.jsonl", texts[::-1]),) for side, texts in
              (("good", LEARNED), ("bad", [shuffled(text) for text in SAMPLE]), ("sample", SAMPLE))}  # fmt: skip
    train_filter(config.model_copy(update={**turned, "output": folder / "again"}))
    assert verify(folder / "again").files == manifest.files


def test_parts_and_bounds_decide(trained):
    _, config, _ = trained
    model = PerplexityModel.load(config.output)
    scores = dict(zip(SAMPLE, model.words.perplexities(SAMPLE).tolist(), strict=True))

    def kept(**settings):
        step = PerplexityStep(PerplexityConfig(model=config.output, **settings))
        outcomes = {text: step(Document("d", text, "s", "l"), Tally()) for text in SAMPLE}
        for text, outcome in outcomes.items():
            value = outcome.value if isinstance(outcome, Dropped) else outcome.meta["perplexity"]
            assert value == pytest.approx(scores[text], abs=0.01)
        return {text for text, outcome in outcomes.items() if isinstance(outcome, Document)}

    def below(percent):
        return {text for text in SAMPLE if scores[text] <= np.percentile(list(scores.values()), percent)}

    assert kept() == below(60)
    assert kept(keep=["head"]) == below(30)
    assert kept(keep=["tail"]) == set(SAMPLE) - below(60)
    assert kept(keep=["middle"], head=10, middle=50) == below(50) - below(10)
    assert kept(keep=["head", "middle", "tail"]) == set(SAMPLE)
    bound = sorted(scores.values())[5]
    assert kept(keep=["head", "middle", "tail"], max_perplexity=bound) == {t for t in SAMPLE if scores[t] <= bound}
    assert kept(keep=["head", "middle", "tail"], min_perplexity=bound) == {t for t in SAMPLE if scores[t] >= bound}


def test_a_corpus_drops_the_tail_and_reports_it(trained):
    folder, config, _ = trained
    noise = [shuffled(text) for text in FRESH]
    mixed = save(folder / "mixed.jsonl", [*FRESH, *noise, "…"])
    values = {
        "inputs": [str(mixed)], "output": str(folder / "c"), "preset": "none", "dedup": {"near": False, "exact": False},
        "perplexity": {"model": str(config.output), "middle": 90.0},
    }  # fmt: skip
    manifest = prepare(PrepareConfig.parse(values))
    report = json.loads((folder / "c/report.json").read_text())
    rules = {rule["name"]: rule for rule in report["rules"] if rule["preset"] == "perplexity"}
    funnel = {row["name"]: row for row in report["funnel"]}
    assert rules.keys() == {"tail"}
    assert funnel["perplexity"]["dropped"] == rules["tail"]["dropped"] == report["perplexity"]["tail"]
    assert len(rules["tail"]["samples"]) == 3
    assert sum(report["perplexity"].values()) == 2 * len(FRESH) + 1
    files = [(folder / f"c/{split}.jsonl").read_text().splitlines() for split in ("train", "validation")]
    rows = [json.loads(line) for lines in files for line in lines]
    model = PerplexityModel.load(config.output)
    expected = {t for t in [*FRESH, *noise] if model.words.perplexities([t])[0] <= model.at(90)}
    assert {row["text"] for row in rows} == expected
    assert len(expected & set(FRESH)) > 0.8 * len(FRESH)
    assert len(expected & set(noise)) < 0.3 * len(noise)
    assert all(row["meta"]["perplexity"] <= model.at(90) for row in rows)
    assert "perplexity.model" in {parent.role for parent in manifest.parents}
    assert "Where the perplexity filter" in (folder / "c/report.html").read_text()


def test_an_input_may_have_a_filter_of_its_own(trained):
    folder, config, _ = trained
    one, other = save(folder / "one.jsonl", FRESH[:9]), save(folder / "other.jsonl", FRESH[9:18])
    own = {"path": str(one), "perplexity": {"model": str(config.output), "max_perplexity": 1.0}}
    values = {"inputs": [own, str(other)], "output": str(folder / "own"), "preset": "none", "runner": {"workers": 1}}
    manifest = prepare(PrepareConfig.parse(values))
    assert manifest.metrics["filtered"] == 9
    assert manifest.metrics["train_documents"] + manifest.metrics["validation_documents"] == 9
    assert "inputs.0.perplexity.model" in {parent.role for parent in manifest.parents}


def test_what_cannot_be_is_named(trained, tmp_path):
    _, config, _ = trained
    few = save(tmp_path / "few.jsonl", LEARNED[:3])
    with pytest.raises(DataError, match="3 good texts are too few"):
        train_filter(TrainFilterConfig(kind="perplexity", good=(few,), output=tmp_path / "f"))
    with pytest.raises(DataError, match="0 texts of the sample"):
        train_filter(config.model_copy(update={"sample": config.good, "output": tmp_path / "f"}))
    with pytest.raises(ConfigError, match="learns from both sides"):
        TrainFilterConfig.parse({"good": [str(few)], "output": str(tmp_path / "f")})
    with pytest.raises(ConfigError, match="no effect"):
        TrainFilterConfig.parse({"good": [str(few)], "bad": [str(few)], "sample": [str(few)], "output": "f"})
    for wrong in ({"head": 70}, {"min_perplexity": 9, "max_perplexity": 8}, {"keep": []}, {"keep": ["best"]}):
        with pytest.raises(ConfigError):
            PerplexityConfig.parse({"model": str(config.output), **wrong})
    with pytest.raises(ArtifactError, match="no perplexity filter"):
        PerplexityModel.load(tmp_path)
    (tmp_path / "cut").mkdir()
    for name in ("perplexity.json", "model.safetensors"):
        (tmp_path / "cut" / name).write_bytes((config.output / name).read_bytes()[:-9])
    with pytest.raises(ArtifactError, match="no perplexity filter"):
        PerplexityModel.load(tmp_path / "cut")


def test_without_a_sample_held_out_text_sets_the_percentiles(tmp_path):
    good = save(tmp_path / "good.jsonl", PROSE)
    manifest = train_filter(TrainFilterConfig(kind="perplexity", good=(good,), output=tmp_path / "f", ngram=2))
    model = PerplexityModel.load(tmp_path / "f")
    assert manifest.metrics["sample"] == manifest.metrics["held_out_good"]
    assert model.at(50) == pytest.approx(manifest.metrics["held_out_perplexity"], abs=0.01)
    assert len(model.words.levels) == 2
