"""What a person who runs a recipe relies on: right steps run, unchanged ones do not, and every refusal says why."""

import subprocess
import sys
from pathlib import Path

import fake_stages
import pytest
from fake_stages import CALLS, STAGES

from lmworks.core.errors import DataError, RecipeError, RunInProgressError
from lmworks.core.lineage import load_manifest
from lmworks.pipeline.recipe import load_recipe
from lmworks.pipeline.runner import Runner


def run(file: Path, overrides: dict | None = None, **options) -> list[str]:
    """Run and return the stages that were called, less the service."""
    CALLS.clear()
    smoke = options.pop("smoke", False)
    Runner(load_recipe(file, overrides, smoke=smoke), file, stages=STAGES, **options).run()
    return [call for call in CALLS if call != "wait"]


def plan(file: Path, overrides: dict | None = None, **options) -> dict[str, tuple[bool, str]]:
    planned = Runner(load_recipe(file, overrides), file, stages=STAGES, **options).plan()
    return {item.step.name: (item.decision.run, item.decision.reason) for item in planned}


def test_second_run_keeps_everything(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(recipe_file) == ["text", "text", "join"]
    assert (tmp_path / "run/ab/text.txt").read_text() == "hello world"
    assert run(recipe_file) == []
    assert CALLS == ["wait"]
    assert "Look around." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "called"),
    [
        ({"a.text": "other"}, ["text", "join"]),
        ({"ab.style.separator": "-"}, ["join"]),
        ({"ab.sources": ["${b}", "${a}"]}, ["join"]),
        ({"ab.sources": ["${b}"]}, ["join"]),
    ],
)
def test_a_change_reruns_exactly_what_depends_on_it(recipe_file: Path, overrides: dict, called: list[str]) -> None:
    run(recipe_file)
    assert run(recipe_file, overrides) == called


def test_same_bytes_made_anew_do_not_rerun_what_follows(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file)
    (tmp_path / "run/a/text.txt").unlink()
    assert run(recipe_file) == ["text"]


def test_changed_code_reruns(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(recipe_file)
    monkeypatch.setattr("lmworks.pipeline.freshness.code_version", lambda module: "2")
    ran, reason = plan(recipe_file)["a"]
    assert ran
    assert "code of fake_stages changed" in reason


def test_an_edited_output_is_made_anew(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file)
    (tmp_path / "run/ab/text.txt").write_text("tampered")
    assert run(recipe_file) == ["join"]
    assert (tmp_path / "run/ab/text.txt").read_text() == "hello world"


def test_plan_gives_reasons_and_runs_nothing(recipe_file: Path) -> None:
    assert plan(recipe_file)["a"] == (True, "not made yet")
    run(recipe_file)
    CALLS.clear()
    shown = plan(recipe_file, {"a.text": "new"})
    assert CALLS == []
    assert shown["a"] == (True, "text: hello -> new")
    assert shown["b"] == (False, "unchanged")
    assert shown["ab"] == (True, "sources.0: a is made first")


def test_from_and_only(recipe_file: Path) -> None:
    run(recipe_file)
    assert run(recipe_file, start="b") == ["text", "join"]
    assert run(recipe_file, only="ab") == ["join"]
    assert CALLS == ["join"]
    with pytest.raises(RecipeError, match="did you mean 'ab'"):
        run(recipe_file, only="aab")


def test_smoke_overrides(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file, smoke=True)
    assert (tmp_path / "run-smoke/a/text.txt").read_text() == "small"
    assert not (tmp_path / "run").exists()


def test_failed_step_is_named_and_finished_steps_are_kept(recipe_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        run(recipe_file, {"b.text": ""})
    assert "'b' (make text)" in caught.value.__notes__[0]
    assert str(recipe_file) in caught.value.__notes__[0]
    assert load_manifest(tmp_path / "run/a").kind == "source"
    assert not (tmp_path / "run/b").exists()
    assert run(recipe_file) == ["text", "join"]


def test_interrupt_says_how_to_go_on(recipe_file: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(recipe_file, {"b.text": "interrupt"})
    assert "run the same command again" in capsys.readouterr().err


def test_one_run_at_a_time_per_folder(recipe_file: Path, tmp_path: Path) -> None:
    hold = (
        "import pathlib, sys\nfrom lmworks.pipeline.runner import locked\n"
        f"with locked(pathlib.Path({str(tmp_path / 'run')!r})):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunInProgressError, match="another run is at work"):
            run(recipe_file)
        other.kill()  # the lock of a dead process is free
    assert run(recipe_file) == ["text", "text", "join"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("stage: join", "stage: joim"), r"step 'ab' has the unknown stage 'joim' \(did you mean 'join'\?\)"),
        (("text: hello", "texx: hello"), r"step 'a' \(make text\).*unknown field 'texx' \(did you mean 'text'\?\)"),
        (("- ${a}", "- ${aa}"), r"step 'ab' refers to \$\{aa\}.*did you mean 'a'"),
        (("name: b,", "name: a,"), "'a' is used twice"),
        (("name: tiny", "nam: tiny"), "unknown field 'nam'"),
        (("text: hello", "text: 3"), "text = 3"),
        (("a.text: small", "c.text: small"), "'c.text' names no step"),
        (("- {stage: make text, name: a, with: {text: hello}}", "- {stage: wait, name: a, with: {model: x}}"),
         r"refers to \$\{a\}, which no earlier step makes"),
    ],
)  # fmt: skip
def test_bad_recipes_name_file_step_and_field(recipe_file: Path, change: tuple[str, str], message: str) -> None:
    recipe_file.write_text(recipe_file.read_text().replace(*change))
    with pytest.raises(RecipeError, match=message) as caught:
        Runner(load_recipe(recipe_file, smoke="c.text" in change[1]), recipe_file, stages=STAGES)
    assert str(recipe_file) in str(caught.value)
    assert fake_stages.CALLS == []
