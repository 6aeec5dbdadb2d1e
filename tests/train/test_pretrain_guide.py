"""The guide to pretraining runs as it reads."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_continual import NEW, OLD, write_domain

from lmworks.cli.main import cli
from lmworks.core.lineage import load_manifest

GUIDE = Path(__file__).resolve().parents[2] / "docs/guides/pretrain.md"
FENCE = re.compile(r"```(sh|yaml)\n(.*?)```", re.DOTALL)


def test_the_guide_runs_as_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmworks.train.pretrain.plot_run", lambda *_: None)
    write_domain(tmp_path / "runs/old", OLD)
    write_domain(tmp_path / "runs/new", NEW)
    for kind, block in FENCE.findall(GUIDE.read_text(encoding="utf-8")):
        if kind == "yaml":
            Path(block.splitlines()[0].removeprefix("# ")).write_text(block, encoding="utf-8")
            continue
        for command in block.splitlines():
            result = CliRunner().invoke(cli, shlex.split(command)[1:])
            assert result.exit_code == 0, (command, result.output, result.exception)
    metrics = load_manifest(Path("runs/continued")).metrics
    assert {"forgetting.old", "forgetting.tokens"} <= set(metrics)
    assert load_manifest(Path("runs/mixture")).metrics["share.old"] == pytest.approx(0.65, abs=2 / 32)
