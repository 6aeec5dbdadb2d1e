"""The report page: complete, self-contained, honest about what changed, and published in one step."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_stages import STAGES, JoinConfig, TextConfig, join, text

from lmworks.core.errors import ArtifactError
from lmworks.core.lineage import load_manifest
from lmworks.pipeline.drawing import Node, curve, graph, nice_ticks
from lmworks.pipeline.report import ReportConfig, report, split
from lmworks.pipeline.schema import recipe_schema


class Balanced(HTMLParser):
    """Fails on tags that do not close in order."""

    VOID = {"meta", "img", "line", "rect", "circle", "polyline", "path", "br"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture
def made(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        text(TextConfig(text=name, output=tmp_path / name))
    join(JoinConfig(sources=(tmp_path / "a", tmp_path / "b"), output=tmp_path / "ab"))
    return tmp_path


def test_page_shows_every_artifact_and_loads_nothing(made: Path) -> None:
    report(ReportConfig(artifacts=(made / "ab",), output=made / "report"))
    page = (made / "report.html").read_text()
    assert (made / "report.html").is_symlink()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    for name in ("a", "b", "ab"):
        assert f"<h2>{name}</h2>" in page
    assert "CC0-1.0" in page
    assert page.count("<svg") == 3  # the graph, loss, tokens per second
    assert "a &lt;b&gt;" in page
    assert "c &amp; d" in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    assert [p.role for p in load_manifest(made / "report").parents] == ["artifacts.0"]
    report(ReportConfig(artifacts=(made / "a",), output=made / "report"))
    assert "<h2>ab</h2>" not in (made / "report.html").read_text()


def test_changed_parent_is_marked(made: Path) -> None:
    text(TextConfig(text="other", output=made / "a"))
    report(ReportConfig(artifacts=(made / "ab",), output=made / "report"))
    assert "(changed)" in (made / "report.html").read_text()


def test_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no lineage"):
        report(ReportConfig(artifacts=(tmp_path / "gone",), output=tmp_path / "report"))
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.87, 9.4), (-3e-5, 2e-5), (5.0, 5.0), (0.0, 0.0)])
def test_ticks_are_round_and_span_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low <= high <= ticks[-1] + 1e-12


def test_nested_metrics_become_tables() -> None:
    scalars, tables, samples = split(
        {"loss": 1.5, "sizes": {"a": 1}, "scores": {"base": {"acc": 0.5}, "int8": {"acc": 0.4}}, "samples": ["text"]}
    )
    assert scalars == {"loss": 1.5, "sizes.a": 1}
    assert tables == {"scores": [{"": "base", "acc": 0.5}, {"": "int8", "acc": 0.4}]}
    assert samples == [{"": "text"}]


def test_curve_is_thinned_and_survives_nan() -> None:
    drawn = curve([(float(i), float("nan") if i == 5 else 1 / (i + 1)) for i in range(10_000)], "loss")
    assert "nan" not in drawn
    assert len(re.search(r'points="([^"]*)"', drawn).group(1).split()) <= 241


def test_graph_draws_known_edges_only() -> None:
    drawn = graph([Node("a", "a", "source", ()), Node("b", "b", "model", ("a", "unknown"))])
    assert drawn.count("<path") == 1
    assert drawn.count("<rect") == 2


def test_schema_offers_each_stage_its_own_fields() -> None:
    schema = recipe_schema(STAGES)
    assert schema["$defs"]["TextConfig"]["required"] == ["text"]
    assert schema["$defs"]["Step"]["properties"]["stage"]["enum"] == list(STAGES)
    assert "separator" in schema["$defs"]["Style"]["properties"]
