"""The report of a corpus: its funnel adds up, its distributions and data sheet tell what is known."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_tokenizers import save

from lmworks.cli.main import cli
from lmworks.core.config import load_yaml
from lmworks.core.errors import ConfigError
from lmworks.core.generation import Document
from lmworks.core.lineage import write_artifact
from lmworks.data.corpus.clean import domain_of
from lmworks.data.corpus.index import input_name
from lmworks.data.corpus.prepare import SPLITS, PrepareConfig, prepare
from lmworks.tokenization import load_tokenizer

HEADINGS = ("motivation", "composition", "collection", "preprocessing", "uses", "distribution", "maintenance")
TEXT = "The river of {0} runs past the mill and the {0} bridge, and with it go the boats of {0} to the sea. "


@pytest.fixture
def corpus(tmp_path):
    """Of a fetched source and a file, with something dropped at most steps."""
    rows = [
        {"text": TEXT.format(f"town{n}") * 5, "license": "CC0-1.0", "url": f"https://www.example.org/{n}"}
        for n in range(8)
    ]
    rows += [{**rows[0], "text": rows[0]["text"].upper()}, {**rows[1], "license": "GPL-2.0-only"}]
    rows += [{**rows[2], "text": "Der Fluss fließt an der alten Mühle vorbei und trägt die Boote zum Meer. " * 3}]
    rows += [{**rows[3], "text": "Write to someone@mail.example.org about the vile river. " * 5, "url": "http://[bad"}]
    with write_artifact(tmp_path / "rivers", "source", config={}, parents={}, code_version="0") as writer:
        (writer.folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        package = {"registry": "pypi", "project": "rivers", "version": "1.0"}
        writer.notes = {"name": "rivers", "license": "CC0-1.0", "description": "Rivers", "package": package}
    (tmp_path / "notes.txt").write_text(TEXT.format("notes") * 5)
    (tmp_path / "list.txt").write_text("vile\n")
    save("llama3", tmp_path / "tokenizer")
    config = PrepareConfig.parse(
        {
            "inputs": [str(tmp_path / "rivers"), str(tmp_path / "notes.txt")],
            "output": str(tmp_path / "corpus"),
            "preset": "none",
            "language": {"allow": ["en"]},
            "licenses": {"deny": ["GPL-*"]},
            "words": [{"name": "harmful", "path": str(tmp_path / "list.txt")}],
            "dedup": {"near": False},
            "pii": {},
            "tokenizer": str(tmp_path / "tokenizer"),
            "validation_fraction": 0.2,
            "data_sheet": {"motivation": "To test <b>rivers</b>."},
        }
    )
    prepare(config)
    return tmp_path / "corpus"


def read(corpus):
    return json.loads((corpus / "report.json").read_text(encoding="utf-8"))


def test_the_funnel_adds_up(corpus):
    report = read(corpus)
    counts, funnel = report["counts"], report["funnel"]
    assert {row["name"]: row["dropped"] for row in funnel} == {
        "license": 1, "language": 1, "rules": 0, "words": 1, "exact duplicates": 1, "near duplicates": 0,
    }  # fmt: skip
    assert funnel[0]["met"] == counts["pieces"] == 13
    for row, following in pairwise(funnel):
        assert row["left"] == row["met"] - row["dropped"] == following["met"]
    assert funnel[-1]["left"] == counts["train_documents"] + counts["validation_documents"] == 9


def test_distributions_tell_what_was_kept(corpus):
    report = read(corpus)
    assert report["languages"]["en"]["documents"] == 9
    assert report["domains"] == {"www.example.org": 9}
    assert report["lost_licenses"] == {"GPL-2.0-only": 1}
    tokenizer = load_tokenizer(corpus.parent / "tokenizer")
    for split in ("train", "validation"):
        texts = [json.loads(line)["text"] for line in (corpus / f"{split}.jsonl").read_text().splitlines()]
        assert report["tokens"][split] == sum(len(tokenizer.encode(text)) for text in texts) > 0
    sources = report["sources"]
    assert sources["rivers"]["pieces"] == 12
    assert (sources["rivers"]["filtered"], sources["rivers"]["repeated"], sources["rivers"]["documents"]) == (3, 1, 8)
    assert sum(row["tokens"] for row in sources.values()) == report["tokens"]["total"]
    assert sum(row["bytes"] for row in sources.values()) == sum(report["counts"][f"{s}_bytes"] for s in SPLITS)


def test_inputs_with_one_preset_and_other_bounds_are_all_told(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(TEXT.format(name))
    inputs = [{"path": str(tmp_path / f"{name}.txt"), "min_words": n} for name, n in (("a", 1), ("b", 90))]
    prepare(
        PrepareConfig.parse(
            {"inputs": inputs, "output": str(tmp_path / "c"), "preset": "none", "validation_fraction": 0.0}
        )
    )
    words = next(rule for rule in read(tmp_path / "c")["rules"] if rule["name"] == "words")
    assert (words["low"], words["dropped"]) == ([1, 90], 1)
    assert "1 or 90" in (tmp_path / "c/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "name"), [("books/a.txt", "books"), ("rows.jsonl:4", "rows.jsonl"), ("s3://store/a/b.txt", "store")]
)
def test_a_source_is_named_by_its_first_part(source, name):
    assert input_name(Document("1", "", source, "MIT")) == name


def test_the_data_sheet_has_every_heading_facts_and_what_people_said(corpus):
    sheet = {part["heading"]: part for part in read(corpus)["data_sheet"]}
    assert tuple(sheet) == HEADINGS
    assert sheet["motivation"]["text"] == "To test <b>rivers</b>."
    facts = {heading: " ".join(part["facts"]) for heading, part in sheet.items()}
    assert "en (9)" in facts["composition"]
    assert "pypi package rivers 1.0" in facts["collection"]
    assert "EMAIL_ADDRESS" in facts["preprocessing"]
    assert "No evaluation set" in facts["uses"]
    assert "CC0-1.0" in facts["distribution"]
    page = (corpus / "report.html").read_text(encoding="utf-8")
    assert "To test &lt;b&gt;rivers&lt;/b&gt;." in page
    assert all(f"<h3>{heading.capitalize()}</h3>" in page for heading in HEADINGS)


def test_what_nobody_answered_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("A text.")
    prepare(PrepareConfig(inputs=(tmp_path / "a.txt",), output=tmp_path / "c", preset="none", validation_fraction=0.0))
    sheet = {part["heading"]: part for part in read(tmp_path / "c")["data_sheet"]}
    assert sheet["motivation"]["text"].startswith("Not answered")
    assert "Personal data was not looked for." in sheet["preprocessing"]["facts"]


@pytest.mark.parametrize(
    ("url", "host"), [("https://A.example:80/x", "a.example"), ("no address", "unknown"), ("http://[bad", "unknown")]
)
def test_an_address_has_a_host(url, host):
    assert domain_of(url) == host


def test_a_yaml_file_may_be_typed_as_the_argument(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("A text.")
    Path("mine.yaml").write_text("{inputs: [a.txt], output: c, preset: none, validation_fraction: 0.0}")
    assert CliRunner().invoke(cli, ["data", "prepare", "mine.yaml", "--license", "MIT"]).exit_code == 0
    assert set(read(Path("c"))["licenses"]) == {"MIT"}
    for words in (["a.txt"], ["mine.yaml", "--config", "mine.yaml"], ["none.yaml"]):
        outcome = CliRunner().invoke(cli, ["data", "prepare", *words])
        assert isinstance(outcome.exception, ConfigError), words


def test_the_recipe_of_a_corpus_runs_in_small(tmp_path, monkeypatch):
    """With the source that is on every machine; the others are fetched."""
    recipe = load_yaml(Path(__file__).resolve().parents[2] / "recipes/corpus.yaml")
    assert {given["preset"] for given in recipe["inputs"]} == {"english", "none", "code"}
    monkeypatch.chdir(tmp_path)
    recipe["inputs"] = [given for given in recipe["inputs"] if given["source"] == "stdlib-code"]
    manifest = prepare(PrepareConfig.parse({**recipe, "max_documents": 12, "validation_fraction": 0.2}))
    assert manifest.metrics["read"] == 12
    assert manifest.metrics["train_documents"] > 0
    assert set(read(tmp_path / "runs/corpus")["licenses"]) == {"PSF-2.0"}
