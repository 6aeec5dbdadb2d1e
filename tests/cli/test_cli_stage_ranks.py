"""What processes do not share, a stage or a whole recipe, is not started once per process."""

from pathlib import Path

import fake_stages
import pytest
import yaml
from click.testing import CliRunner

from lmworks.cli.run import run
from lmworks.cli.stage import stage_command
from lmworks.core.errors import ParallelError


def test_a_stage_for_one_process_refuses_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = stage_command("make text", fake_stages.STAGES)
    arguments = ["--text", "words", "--output", str(tmp_path / "made")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParallelError, match=r"make text runs in one process, and WORLD_SIZE says that 2 were started"):
        CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert not (tmp_path / "made").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert CliRunner().invoke(command, arguments, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "made/text.txt").exists()


@pytest.mark.parametrize(
    ("stage", "settings", "starts"),
    [
        ("tune sft", {"model": "m", "conversations": ["c"], "output": "o"}, False),
        ("data prepare", {"inputs": ["i"], "output": "o"}, False),
        ("pretrain", {"tokens": "t", "tokenizer": "t", "output": "o", "train": {"steps": 90}}, True),
    ],
)
def test_only_stages_that_share_their_work_are_started(
    stage: str, settings: dict, starts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(settings))
    started = []
    monkeypatch.setattr("lmworks.pipeline.stages.Stage.call", lambda _: started.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(stage_command(stage), [str(tmp_path / "stage.yaml")])
    assert (len(started), isinstance(result.exception, ParallelError)) == (int(starts), not starts), result.exception


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--smoke"]])
def test_a_recipe_is_not_run_by_several_processes(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, made = tmp_path / "recipe.yaml", tmp_path / "made"
    base = {"tokens": "t", "tokenizer": "t", "output": "${folder}/base", "train": {"steps": 9}}
    recipe.write_text(
        yaml.safe_dump(
            {"name": "many", "folder": str(made), "steps": [{"stage": "pretrain", "name": "base", "with": base}]}
        )
    )
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ParallelError, match=r"lmworks run runs in one process.* 4 were.*lmworks launch torchrun"):
        CliRunner().invoke(run, [str(recipe), *options], catch_exceptions=False)
    assert not made.exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    shown = CliRunner().invoke(run, [str(recipe), "--dry-run"], catch_exceptions=False)
    assert "pretrain" in shown.output
