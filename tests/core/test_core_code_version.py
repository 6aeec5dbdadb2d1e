"""A stage's code version changes with the code it uses and with nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lmworks.core import code_version as module
from lmworks.core.code_version import code_version


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `toy` in which `stage` imports `part` lazily, names `table:row` and a template."""
    root = tmp_path / "toy"
    root.mkdir()
    (root / "stage.py").write_text("def run():\n    from toy.part import x\n    return 'toy.table:row', 'page.html'\n")
    for name in ("__init__", "part", "table", "other"):
        (root / f"{name}.py").write_text("x = 1\n")
    (root / "page.html").write_text("<p>")
    monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(module, "PACKAGE", "toy")
    yield root
    module._imports.cache_clear()
    module._resources.cache_clear()


@pytest.mark.parametrize(
    ("file", "counts"),
    [("stage.py", True), ("part.py", True), ("table.py", True), ("page.html", True), ("other.py", False)],
)
def test_only_used_code_counts(package: Path, file: str, counts: bool) -> None:
    before = code_version("toy.stage")
    (package / file).write_text((package / file).read_text() + "\n# changed\n")
    module._imports.cache_clear()
    module._resources.cache_clear()
    assert (code_version("toy.stage") != before) is counts
