"""A recipe of fake stages in a temporary folder."""

from collections.abc import Iterator
from pathlib import Path

import fake_stages
import pytest


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr("lmworks.pipeline.freshness.code_version", lambda module: "1")
    file = tmp_path / "tiny.yaml"
    file.write_text(fake_stages.RECIPE.format(folder=tmp_path / "run"))
    fake_stages.CALLS.clear()
    yield file
    fake_stages.CALLS.clear()
