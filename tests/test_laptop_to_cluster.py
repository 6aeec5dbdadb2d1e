"""The guide from a laptop to a cluster runs as it reads; of the published recipe's text a few words stand in."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lmworks.cli.main import cli
from lmworks.core.config import load_yaml
from lmworks.train.pretrain import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs/guides/laptop-to-cluster.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
KEPT = ("corpus", "tokenizer", "tokens", "base")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "big", "red", "dog", "ran", "to", "the", "house"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands: the recipe, up to the model, on text that needs no network."""
    here = tmp_path_factory.mktemp("cluster")
    (here / "text").mkdir()
    for i in range(120):
        words = (WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(30 + i % 20))
        (here / f"text/{i}.txt").write_text(f"{i} " + " ".join(words))
    recipe = load_yaml(ROOT / "recipes/life.yaml")
    steps = {step["name"]: step for step in recipe["steps"] if step["name"] in KEPT}
    steps["corpus"]["with"] = {"inputs": ["text"], "preset": "none", "validation_fraction": 0.2}
    del steps["tokenizer"]["with"]["reference"]
    smoke = {key: value for key, value in recipe["smoke"].items() if key.partition(".")[0] in (*KEPT, "folder")}
    smoke |= {
        "tokenizer.vocab_size": 280,
        "base.model.hidden_size": 32,
        "base.train.steps": 4,
        "base.train.schedule.warmup_steps": 1,
    }
    (here / "recipes").mkdir()
    small = {"name": recipe["name"], "folder": recipe["folder"], "steps": list(steps.values()), "smoke": smoke}
    (here / "recipes/life.yaml").write_text(yaml.safe_dump(small, sort_keys=False))
    return here


def lmworks(command: str) -> str:
    words = shlex.split(command)
    assert words[0] == "lmworks"
    result = CliRunner().invoke(cli, words[1:])
    assert result.exit_code == 0, (command, result.output, result.exception)
    return result.output


def test_every_command_runs_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    assert len(COMMANDS) >= 9
    said = {command: lmworks(command) for command in COMMANDS}
    launched = PretrainConfig.parse(load_yaml("runs/smoke/launch/base.yaml"))
    assert launched.train.parallel.data == 2
    assert launched.output == Path("runs/smoke/base")
    for made in ("base.sbatch", "base.jobset.yaml", "base.pytorchjob.yaml"):
        assert (folder / "runs/life/launch" / made).exists()
    subprocess.run(["bash", "-n", "runs/life/launch/base.sbatch"], check=True)
    assert any("reduce_scatter" in output for output in said.values())


def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    wrong = {
        "launch torchrun recipes/life.yaml base --nodes 2 --head a folder=runs/no": "there are 2 processes",
        "launch slurm recipes/life.yaml base --nodes 1:3 folder=runs/no base.train.parallel.data=-1": "do not divide",
        "launch slurm recipes/life.yaml tokens folder=runs/no": "runs in one process",
        "launch slurm recipes/life.yaml bse folder=runs/no": "did you mean 'base'",
        "plan train recipes/life.yaml --ranks 3 --vocab-size 9 base.train.parallel.tensor=3": "does not divide",
        "plan train recipes/life.yaml folder=runs/no": "--vocab-size",
        "plan train recipes/life.yaml --vocab-size 4096 --memory 0.001": "micro_batch_tokens",
    }  # fmt: skip
    for command, problem in wrong.items():
        result = CliRunner().invoke(cli, shlex.split(command))
        assert result.exit_code == 1, command
        assert problem in str(result.exception), (command, result.exception)
    assert not (folder / "runs/no").exists()


@pytest.mark.slow
def test_the_printed_line_trains_on_two_processes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    lmworks("lmworks run recipes/life.yaml --smoke")
    (line,) = (c for c in COMMANDS if "--processes-per-node 2" in c)
    printed = lmworks(line).splitlines()[-1]
    path = f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    subprocess.run(f"rm -rf runs/smoke/base; {path} {printed}", shell=True, check=True, timeout=170)
    assert lmworks("lmworks trace runs/smoke/base")
