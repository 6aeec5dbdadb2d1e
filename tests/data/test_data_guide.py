"""The guide to a reader's own text and to the catalog says what is so, and runs as it reads."""

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from lmworks.cli.main import cli
from lmworks.core.config import load_yaml
from lmworks.core.lineage import load_manifest
from lmworks.data.acquisition.catalog import SOURCES
from lmworks.data.acquisition.fetch import FetchConfig, fetch
from lmworks.data.corpus.inputs import InputConfig, Treatment, resolve_inputs
from lmworks.data.corpus.prepare import PrepareConfig
from lmworks.data.extraction.code import LANGUAGES
from lmworks.data.extraction.compression import COMPRESSIONS
from lmworks.data.extraction.files import SUPPORTED
from lmworks.data.extraction.sources import RowFields

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/guides/data.md").read_text(encoding="utf-8")
FORMATS, CATALOG = (re.findall(r"^\| (`.*)$", part, re.MULTILINE) for part in GUIDE.split("## Named sources"))


def test_the_guide_runs_as_it_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/bridge.md").write_text("# The bridge\n\n" + "It was built of iron in the year 1779. " * 3)
    (tmp_path / "notes/broken.pdf").write_bytes(b"%PDF-1.4 broken")
    (tmp_path / "notes/rows.jsonl").write_text('{"text": "A row of its own.", "license": "MIT"}\n{"no": "text"}\n')
    for command in re.findall(r"^lmworks .*", GUIDE, re.MULTILINE):
        result = CliRunner().invoke(cli, [*shlex.split(command)[1:], *(["--limit", "3"] if "fetch" in command else [])])
        assert result.exit_code == 0, (command, result.output, result.exception)
    files = [file.read_text() for file in (tmp_path / "runs/notes").glob("*.jsonl")]
    rows = [json.loads(line) for file in files for line in file.splitlines()]
    assert {(row["source"], row["license"]) for row in rows} == {
        ("notes/bridge.md", "CC0-1.0"), ("notes/rows.jsonl:1", "MIT"),
    }  # fmt: skip
    assert all(re.fullmatch("[0-9a-f]{16}", row["id"]) for row in rows)
    rejected = json.loads((tmp_path / "runs/notes/report.json").read_text())["rejections"]
    assert {"notes/broken.pdf", "notes/rows.jsonl:2"} <= set(re.findall(r"notes/[\w.:]+", json.dumps(rejected)))
    assert (tmp_path / "runs/sources/stdlib-code/documents.jsonl").exists()


def test_every_format_that_is_named_is_read():
    named = {name for line in FORMATS for name in re.findall(r"`(\.\w+)`", line.split("|")[0])}
    assert named <= set(SUPPORTED)
    assert set(SUPPORTED) - set(LANGUAGES) - {".text", ".markdown", ".zip", ".tar"} <= named
    assert set(COMPRESSIONS) <= set(re.findall(r"`(\.\w+)`", GUIDE))


def test_the_catalog_is_in_the_guide_with_its_licences():
    listed = {}
    for line in CATALOG:
        names, _, terms = (part.strip() for part in line.strip(" |").split("|"))
        listed |= dict.fromkeys(re.findall(r"`([\w-]+)`", names), (terms, "◆" in names))
    assert set(listed) == set(SOURCES)
    assert {name for name, (_, debian) in listed.items() if debian} == {n for n, s in SOURCES.items() if s.packages}
    for name, (terms, _) in listed.items():
        family, version = re.match(r"([A-Z]+)-?(?:BY-SA-)?(\d[.\d]*\d)?", SOURCES[name].license.upper()).groups()
        assert terms == "the same" or family in terms.upper(), name
        assert terms == "the same" or (version or "") in terms, name


@pytest.mark.parametrize("recipe", ["corpus", "corpus-without-debian"])
def test_a_recipe_names_sources_and_fields_that_exist(recipe):
    config = PrepareConfig.parse(load_yaml(ROOT / f"recipes/{recipe}.yaml"))
    sources = [SOURCES[given.source] for given in config.inputs]
    assert {source.kind for source in sources} == {"documents"}
    assert len({given.source for given in config.inputs}) == len(sources)
    assert config.max_documents == 10_000 * len(sources), "what the comment beside it says"
    assert any(source.packages for source in sources) == (recipe == "corpus")
    assert config.pii is not None
    for source in sources:
        assert config.licenses.permits(source.license), source.name


def test_the_two_recipes_differ_in_sources_alone():
    whole, part = (load_yaml(ROOT / f"recipes/corpus{more}.yaml") for more in ("", "-without-debian"))
    assert [given for given in whole["inputs"] if given in part["inputs"]] == part["inputs"]
    assert {given["source"] for given in whole["inputs"] if given not in part["inputs"]} == {
        source.name for source in SOURCES.values() if source.packages and source.kind == "documents"
    }
    for given in (whole, part):
        del given["inputs"], given["max_documents"]
    assert whole == part


def test_a_source_that_was_fetched_in_part_is_fetched_whole(tmp_path, monkeypatch):
    """A look at three rows must not become the corpus."""
    monkeypatch.chdir(tmp_path)
    given = [InputConfig(source="stdlib-code")]
    fetch(FetchConfig.parse({"name": "stdlib-code", "limit": 3}))
    (found,) = resolve_inputs(given, Treatment("code", None, RowFields()))
    whole = load_manifest(found.path)
    assert whole.metrics["rows"] > 3
    resolve_inputs(given, Treatment("code", None, RowFields()))
    assert load_manifest(found.path).created == whole.created
