"""The recipe of objectives runs in its tiny sizes and leaves four models of three kinds."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from lmworks.cli.main import cli
from lmworks.core.lineage import load_manifest
from lmworks.train.metrics import read_metrics

RECIPE = Path(__file__).resolve().parents[2] / "recipes/objectives.yaml"
MODELS = {"encoder": "masked_lm", "spans": "span_corruption", "middle": "causal_lm", "ahead": "causal_lm"}


@pytest.mark.slow  # every objective is trained through `pretrain` elsewhere
def test_the_recipe_of_objectives_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmworks.train.pretrain.plot_run", lambda *_: None)
    result = CliRunner().invoke(cli, ["run", str(RECIPE), "--smoke", "code.limit=20"])
    assert result.exit_code == 0, (result.output, result.exception)
    for name, kind in MODELS.items():
        folder = tmp_path / "runs/objectives-smoke" / name
        assert load_manifest(folder).config["objective"]["kind"] == kind
        assert len(read_metrics(folder / "metrics.jsonl")) == 3
