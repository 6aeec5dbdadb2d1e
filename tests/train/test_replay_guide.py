"""The guide to debugging distributed runs runs as it reads, its ranks as processes of torchrun."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_continual import OLD, write_domain

from lmworks.cli.main import cli
from lmworks.data.tokens.tokenize import TokenizeConfig, tokenize
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer
from lmworks.train.metrics import read_metrics

GUIDE = Path(__file__).resolve().parents[2] / "docs/guides/debug-a-distributed-run.md"
FENCE = re.compile(r"```(sh|yaml)\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_the_guide_runs_as_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmworks.train.pretrain.plot_run", lambda *_: None)
    write_domain(tmp_path / "corpus", OLD)
    train_tokenizer(TokenizerConfig(corpus=Path("corpus"), output=Path("runs/tokenizer"), vocab_size=270))
    tokenize(TokenizeConfig(corpus=Path("corpus"), tokenizer=Path("runs/tokenizer"), output=Path("runs/tokens")))
    shown = ""
    for kind, block in FENCE.findall(GUIDE.read_text(encoding="utf-8")):
        if kind == "yaml":
            Path(block.splitlines()[0].removeprefix("# ")).write_text(block, encoding="utf-8")
            continue
        for command in block.splitlines():
            shown = run(command)
            if "replay runs/two" in command:
                assert "step 4, from the checkpoint of step 2" in shown
                assert "the same in all bits as the run's record" in shown
    assert json.loads(shown)["differences"] == {}
    folder = Path("runs/two.checkpoints")
    assert {"logs", "heartbeats", "metrics.jsonl", "run.json"} <= {path.name for path in folder.iterdir()}
    assert (folder / "logs/rank-00001.log").exists()
    assert "straggler" in read_metrics(folder / "metrics.jsonl")[1]


def run(command: str) -> str:
    words = shlex.split(command)
    if words[0] == "torchrun":
        words = [sys.executable, "-m", "torch.distributed.run", "--master-port", "29731", *words[1:]]
        done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout
    result = CliRunner().invoke(cli, words[1:])
    assert result.exit_code == 0, (command, result.output, result.exception)
    return result.stdout
