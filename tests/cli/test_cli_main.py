"""The command line as a person meets it: instant help, one clear line per mistake, right exit statuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_stages
import pytest
from click.testing import CliRunner

from lmworks.cli import main as cli_main
from lmworks.cli.stage import stage_command
from lmworks.core.errors import ConfigError
from lmworks.core.lineage import load_manifest

REPOSITORY = Path(__file__).resolve().parents[2]


def lmworks(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "110", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "lmworks", *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )


def in_process(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lmworks", *arguments])
    with pytest.raises(SystemExit) as ending:
        cli_main.main()
    return ending.value.code


def test_help_imports_nothing_heavy() -> None:
    probe = (
        "import sys; sys.argv=['lmworks','--help']; heavy = 'torch tokenizers fastapi transformers numpy'.split()\n"
        "from lmworks.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print({m for m in heavy if m in sys.modules})"
    )
    said = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert said.stdout.endswith("set()\n")
    assert all(name.partition(" ")[0] in said.stdout for name in cli_main.COMMANDS)


def test_fetch_takes_its_source_as_an_argument(tmp_path: Path) -> None:
    said = lmworks("data", "fetch", "stdlib-code", "--limit", "3", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    manifest = load_manifest(tmp_path / "runs/sources/stdlib-code")
    assert manifest.metrics["rows"] == 3
    assert "did you mean 'stdlib-code'" in lmworks("data", "fetch", "stdlib-cod", cwd=tmp_path).stderr


def test_unknown_command_names_the_nearest() -> None:
    said = lmworks("pretrian")
    assert said.returncode == 2
    assert "did you mean 'pretrain'?" in said.stderr


def test_user_mistake_is_one_line_and_status_2(tmp_path: Path) -> None:
    said = lmworks("run", str(tmp_path / "none.yaml"))
    assert said.returncode == 2
    assert len(said.stderr.strip().splitlines()) == 1
    assert "none.yaml" in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize(
    ("raised", "status", "shown"),
    [
        (KeyboardInterrupt(), 130, "Stopped by Ctrl-C."),
        (ZeroDivisionError("boom"), 1, "ZeroDivisionError: boom"),
        (
            ConfigError("seed = x is not a number", "Give a number"),
            2,
            "Error: seed = x is not a number. Give a number.",
        ),
    ],
)
def test_exit_statuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, raised: BaseException, status: int, shown: str
) -> None:
    def fail(**_: object) -> None:
        raise raised

    monkeypatch.setattr("lmworks.cli.trace.trace.callback", fail)
    assert in_process(monkeypatch, "trace", "x") == status
    assert shown in capsys.readouterr().err


def test_stage_flags_reach_the_configuration(tmp_path: Path) -> None:
    text = stage_command("make text", fake_stages.STAGES)
    for name in ("a", "b"):
        CliRunner().invoke(text, ["--text", "007", "--output", str(tmp_path / name)], catch_exceptions=False)
    assert (tmp_path / "a/text.txt").read_text() == "007"  # text stays text
    settings = tmp_path / "join.yaml"
    settings.write_text(f"sources: [{tmp_path / 'a'}]\nstyle: {{separator: '+', repeat: 3}}\n")
    arguments = ["--config", str(settings), "--style.repeat", "2", "--output", str(tmp_path / "ab")]
    command = stage_command("join", fake_stages.STAGES)
    CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert (tmp_path / "ab/text.txt").read_text() == "007+007"
    assert load_manifest(tmp_path / "ab").config["style"] == {"separator": "+", "repeat": 2}
    both = ["--sources", str(tmp_path / "a"), "--sources", str(tmp_path / "b"), "--output", str(tmp_path / "c")]
    CliRunner().invoke(command, both, catch_exceptions=False)
    assert (tmp_path / "c/text.txt").read_text() == "007 007"


def test_stage_help_is_made_from_field_docstrings() -> None:
    said = CliRunner().invoke(stage_command("join", fake_stages.STAGES), ["--help"]).output
    assert "--sources PATH" in said
    assert "Artifacts to join.  [required]" in said
    assert "--style.separator TEXT" in said


def test_stage_mistakes_point_to_help(tmp_path: Path) -> None:
    command = stage_command("join", fake_stages.STAGES)
    result = CliRunner().invoke(command, ["--style.repeat", "many", "--output", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert "style.repeat = 'many'" in str(result.exception)
    assert "'sources' is required" in str(result.exception)
    assert "lmworks join --help" in str(result.exception)
    assert CliRunner().invoke(command, ["--style.repat", "2"]).exit_code == 2


def test_run_and_trace_end_to_end(tmp_path: Path) -> None:
    """A recipe over the real stage table: the report of an artifact that stands already."""
    fake_stages.text(fake_stages.TextConfig(text="hi", output=tmp_path / "source"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: one\nfolder: {tmp_path / 'run'}\nsteps:\n  - stage: report\n    name: page\n"
        f"    with: {{artifacts: ['{tmp_path / 'source'}']}}\n"
    )
    assert "not made yet" in lmworks("run", str(recipe), "--dry-run").stdout
    first = lmworks("run", str(recipe))
    assert first.returncode == 0, first.stderr
    assert "unchanged, kept" in lmworks("run", str(recipe)).stderr
    changed = lmworks("run", str(recipe), "page.title=Other", "--dry-run")
    assert "title: The life of a language model -> Other" in changed.stdout

    tree = json.loads(lmworks("trace", str(tmp_path / "run/page"), "--json").stdout)["made_from"]
    assert tree["kind"] == "report"
    assert [(p["kind"], p["state"]) for p in tree["parents"]] == [("source", "intact")]
    (tmp_path / "source/text.txt").write_text("changed")
    assert "changed since" in lmworks("trace", str(tmp_path / "run/page")).stdout


def test_trace_from_an_answer(tmp_path: Path) -> None:
    made = fake_stages.text(fake_stages.TextConfig(text="hi", output=tmp_path / "model"))
    journal = tmp_path / "runs/x/responses.jsonl"
    journal.parent.mkdir(parents=True)
    entry = {"id": "chatcmpl-1", "created": 1, "model": "life", "path": str(tmp_path / "model"),
             "content_hash": made.content_hash, "prompt_tokens": 3, "completion_tokens": 4,
             "finish_reasons": ["stop"], "duration_seconds": 0.1}  # fmt: skip
    journal.write_text('{"id": "chatcmpl-1", "cut off\n' + json.dumps(entry) + "\n")
    said = lmworks("trace", "chatcmpl-1", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "answer chatcmpl-1 by life" in said.stdout
    assert "CC0-1.0" in said.stdout
    unknown = lmworks("trace", "chatcmpl-2", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "runs/x/responses.jsonl" in unknown.stderr


def test_prove_exits_1_when_a_bound_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from lmworks.proofs.row import Row

    class Suite:
        @staticmethod
        def prove() -> list[Row]:
            return [Row("holds", 1.0, 2.0), Row("fails", 3.0, 2.0)]

    monkeypatch.setattr("lmworks.cli.prove.find_spec", lambda name: name)
    monkeypatch.setattr("lmworks.cli.prove.import_module", lambda name: Suite)
    assert in_process(monkeypatch, "prove", "core", "--json") == 1
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["case"], row["ok"]) for row in rows] == [("holds", True), ("fails", False)]
    monkeypatch.setattr("lmworks.cli.prove.find_spec", lambda name: None)
    assert in_process(monkeypatch, "prove", "cor") == 2
