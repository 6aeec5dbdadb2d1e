"""A stage whose work processes do not share is not started once per process."""

from pathlib import Path

import fake_stages
import pytest
import yaml
from click.testing import CliRunner

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
