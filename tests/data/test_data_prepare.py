"""The stages from files to tokens, end to end on small folders."""

import json
import random
from pathlib import Path

import pytest

from lmworks.core.errors import ConfigError, DataError
from lmworks.core.lineage import verify
from lmworks.data.corpus.inputs import InputConfig
from lmworks.data.corpus.prepare import PrepareConfig, prepare
from lmworks.data.deduplication.fingerprints import DedupConfig

WORDS = [f"{a}{b}{c}" for a in "bdgklmnprst" for b in "aeiou" for c in "lmnrst"]


def essay(seed, sentences=12):
    rng = random.Random(seed)
    return " ".join(
        " ".join(["The", *rng.choices(WORDS, k=4), "and", *rng.choices(WORDS, k=4)]) + "." for _ in range(sentences)
    )


@pytest.fixture
def folder(tmp_path):
    """Forty essays, an exact and a near copy, a short text, a binary file named .txt and a bad row."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for seed in range(40):
        (folder / f"{seed:02}.txt").write_text(essay(seed))
    (folder / "exact.txt").write_text(essay(3).replace(" ", "  "))
    (folder / "near.txt").write_text(essay(4) + " One more sentence.")
    (folder / "short.txt").write_text("Too short to keep.")
    (folder / "program.txt").write_bytes(bytes(range(256)) * 4)
    (folder / "rows.jsonl").write_text(json.dumps({"text": essay(100), "license": "MIT"}) + "\n{oops\n")
    return folder


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_folder_becomes_a_corpus_with_a_report(tmp_path, folder):
    output = tmp_path / "corpus"
    config = PrepareConfig(inputs=(folder,), output=output, license="CC0-1.0", validation_fraction=0.2)
    manifest = prepare(config)
    assert verify(output).content_hash == manifest.content_hash
    assert manifest.parents[0].kind == "folder"
    train, validation = rows(output / "train.jsonl"), rows(output / "validation.jsonl")
    assert set(train[0]) >= {"id", "text", "source", "license"}
    texts = [row["text"] for row in (*train, *validation)]
    assert len(texts) == len(set(texts)) == 41
    assert 1 <= len(validation) <= 20
    assert essay(4) + " One more sentence." in texts
    assert essay(4) not in texts
    report = json.loads((output / "report.json").read_text())
    assert report["counts"] == manifest.metrics
    expected = {
        "read": 44,
        "rejected": 2,
        "filtered": 1,
        "exact_duplicates": 1,
        "near_duplicates": 1,
        "moved_to_train": 0,
    }
    assert {key: manifest.metrics[key] for key in expected} == expected
    assert {(r["place"], r["reason"]) for r in report["rejections"]["first"]} == {
        ("texts/program.txt", "binary"), ("texts/rows.jsonl:2", "bad json"),
    }  # fmt: skip
    words = next(rule for rule in report["rules"] if rule["name"] == "words")
    assert words["dropped"] == 1
    assert words["samples"][0]["source"] == "texts/short.txt"
    near = report["duplicates"]["near"][0]
    assert (near["dropped"]["source"], near["kept"]["source"]) == ("texts/04.txt", "texts/near.txt")
    assert report["licenses"]["MIT"]["documents"] == 1
    assert report["licenses"]["CC0-1.0"]["documents"] == 40
    assert manifest.notes["licenses"] == report["licenses"]
    assert sum(b["documents"] for b in report["lengths"]) == 41


def test_the_page_shows_everything_and_needs_nothing(tmp_path, folder):
    (folder / "script.txt").write_text(essay(200) + " <script>alert(1)</script>")
    prepare(PrepareConfig(inputs=(folder,), output=tmp_path / "corpus"))
    page = (tmp_path / "corpus" / "report.html").read_text(encoding="utf-8")
    for shown in ("<svg", "Too short to keep.", "texts/near.txt", "texts/program.txt", "Gopher", "MIT"):
        assert shown in page
    assert "http" not in page
    assert "<script" not in page


def test_the_same_inputs_give_the_same_bytes(tmp_path, folder):
    first, second = (prepare(PrepareConfig(inputs=(folder,), output=tmp_path / name)) for name in "ab")
    assert first.files == second.files
    other = prepare(PrepareConfig(inputs=(folder,), output=tmp_path / "c", seed=1))
    assert other.files["train.jsonl"] != first.files["train.jsonl"]


def test_near_copies_kept_on_purpose_stay_on_one_side(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for seed in range(30):
        for copy in range(3):
            (folder / f"{seed:02}-{copy}.txt").write_text(essay(seed) + f" Copy {copy}.")
    config = PrepareConfig(
        inputs=(folder,), output=tmp_path / "c", validation_fraction=0.3, dedup=DedupConfig(near=False, exact=False)
    )
    assert prepare(config).metrics["near_duplicates"] == 0
    sides = [{r["source"].split("-")[0] for r in rows(tmp_path / "c" / f"{s}.jsonl")} for s in ("train", "validation")]
    assert not sides[0] & sides[1]
    assert all(sides)


def test_one_long_file_is_divided_and_split(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("\n\n".join(essay(seed) for seed in range(60)))
    config = PrepareConfig(inputs=(file,), output=tmp_path / "c", max_characters=2000, validation_fraction=0.1)
    metrics = prepare(config).metrics
    assert metrics["read"] == 1
    assert metrics["train_documents"] > 10
    assert metrics["validation_documents"] >= 1
    ids = [row["id"] for s in ("train", "validation") for row in rows(tmp_path / "c" / f"{s}.jsonl")]
    assert len(set(ids)) == len(ids)


def test_limits_take_an_equal_share_of_each_input(tmp_path, folder):
    other = tmp_path / "other"
    other.mkdir()
    for seed in range(300, 320):
        (other / f"{seed}.txt").write_text(essay(seed))
    inputs = (folder, other)
    base = {"inputs": inputs, "preset": "none", "validation_fraction": 0.0}
    assert prepare(PrepareConfig(output=tmp_path / "a", max_documents=10, **base)).metrics["read"] == 10
    sources = {row["source"].split("/")[0] for row in rows(tmp_path / "a" / "train.jsonl")}
    assert sources == {"texts", "other"}
    metrics = prepare(PrepareConfig(output=tmp_path / "b", max_bytes=6000, **base)).metrics
    assert 6000 <= metrics["train_bytes"] < 8000


EMPTY = {
    "nothing readable": {"a.txt": b"\x00\x01\x02"},
    "all filtered": {"a.txt": b"short", "b.txt": b"also short"},
    "all blank": {"a.txt": b" \n"},
    "an empty file": {"a.jsonl": b""},
}


@pytest.mark.parametrize("case", EMPTY)
def test_an_empty_corpus_is_an_error_that_counts_the_losses(tmp_path, case):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in EMPTY[case].items():
        (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=r"no document is left: \d+ read; lost: ") as caught:
        prepare(PrepareConfig(inputs=(folder,), output=tmp_path / "out"))
    losses = {"nothing readable": "binary", "all filtered": "2 broke 'words'"}
    assert losses.get(case, "1 empty") in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in"], "nothing half-written is left"


def test_a_single_document_cannot_be_split(tmp_path):
    (tmp_path / "a.txt").write_text(essay(0))
    with pytest.raises(DataError, match="cannot be divided"):
        prepare(PrepareConfig(inputs=(tmp_path / "a.txt",), output=tmp_path / "c"))
    config = PrepareConfig(inputs=(tmp_path / "a.txt",), output=tmp_path / "c", validation_fraction=0.0)
    assert prepare(config).metrics["train_documents"] == 1


def test_configurations_are_checked():
    with pytest.raises(ConfigError, match="did you mean 'inputs'"):
        PrepareConfig.parse({"input": ["x"], "output": "y"})
    for values in (
        {"inputs": []},
        {"inputs": ["x"], "preset": "poetry"},
        {"inputs": ["x"], "validation_fraction": 0.9},
    ):
        with pytest.raises(ConfigError):
            PrepareConfig.parse({**values, "output": "y"})
    assert PrepareConfig.parse({"inputs": ["x"], "output": "y"}).inputs == (InputConfig(path=Path("x")),)
    for place in ({}, {"path": "x", "source": "wikipedia-intros"}):
        with pytest.raises(ConfigError, match="give one of the two"):
            PrepareConfig.parse({"inputs": [place], "output": "y"})


def test_each_input_is_cleaned_by_its_own_rules(tmp_path, folder):
    code = tmp_path / "code"
    code.mkdir()
    (code / "short.py").write_text("def answer():\n    return 42\n")
    inputs = (folder, InputConfig(path=code, preset="code", license="MIT"))
    prepare(PrepareConfig(inputs=inputs, output=tmp_path / "corpus", validation_fraction=0.2))
    found = [row for split in ("train", "validation") for row in rows(tmp_path / "corpus" / f"{split}.jsonl")]
    python = next(row for row in found if row["source"] == "code/short.py")
    assert (python["text"], python["license"]) == ("def answer():\n    return 42", "MIT")
    report = json.loads((tmp_path / "corpus" / "report.json").read_text())
    assert report["presets"] == ["prose", "code"]
    assert report["sources"]["code"]["documents"] == 1


def test_pages_fetched_twice_are_not_called_near(tmp_path):
    pages = [("a", essay(1)), ("a/", essay(2)), ("b", essay(3)), ("c", essay(3) + " Once more.")]
    lines = [{"text": text, "url": f"https://www.x.org/{page}?utm_source={len(text)}"} for page, text in pages]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    values = {"inputs": [str(tmp_path / "in.jsonl")], "output": str(tmp_path / "c"), "preset": "none"}
    prepare(PrepareConfig.parse({**values, "dedup": {"url": True}, "validation_fraction": 0}))
    report = json.loads((tmp_path / "c/report.json").read_text())
    dropped = {row["name"]: row["dropped"] for row in report["funnel"]}
    assert dropped == {"rules": 0, "exact duplicates": 0, "address duplicates": 1, "near duplicates": 1}
    assert [len(report["duplicates"][why]) for why in ("exact", "address", "near")] == [0, 1, 1]
    assert report["counts"]["address_duplicates"] == 1
    assert "dropped as address duplicate" in (tmp_path / "c/report.html").read_text()


def test_what_is_cut_counts_the_white_space_that_goes_with_it(tmp_path):
    texts = ["a run of words that comes twice", "a run of words that comes twice and the rest of it"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    values = {"inputs": [str(tmp_path / "in.jsonl")], "output": str(tmp_path / "c"), "preset": "none"}
    dedup = {"near": False, "keep": "first", "substring_bytes": 31}
    counts = prepare(PrepareConfig.parse({**values, "dedup": dedup, "validation_fraction": 0})).metrics
    assert [row["text"] for row in rows(tmp_path / "c/train.jsonl")] == [texts[0], "and the rest of it"]
    assert counts["characters_cut"] == len(texts[1]) - len("and the rest of it")


def test_lines_and_runs_that_repeat_are_cut(tmp_path, folder):
    for seed in range(6):
        file = folder / f"{seed + 10:02}.txt"
        file.write_text("Home, about us, contact and all the rest.\n" + file.read_text() + " " + essay(999))
    (folder / "menu.txt").write_text("Home, about us, contact and all the rest.")
    dedup = DedupConfig(lines="none", least_copies=3, substring_bytes=400)
    config = {"inputs": (folder,), "output": tmp_path / "corpus", "validation_fraction": 0.2, "min_words": 1}
    metrics = prepare(PrepareConfig(**config, dedup=dedup)).metrics
    found = [row for split in ("train", "validation") for row in rows(tmp_path / "corpus" / f"{split}.jsonl")]
    assert not any("about us" in row["text"] for row in found)
    assert sum(essay(999)[200:500] in row["text"] for row in found) == 1
    assert sum(essay(12)[100:300] in row["text"] for row in found) == 1
    assert metrics["emptied"] == 1, "the menu"
    assert metrics["documents_cut"] >= 6
    assert metrics["characters_cut"] > 5 * 400
    assert metrics["train_bytes"] + metrics["validation_bytes"] == sum(len(row["text"].encode()) for row in found)
    report = json.loads((tmp_path / "corpus" / "report.json").read_text())
    assert report["funnel"][-1]["left"] == len(found)
