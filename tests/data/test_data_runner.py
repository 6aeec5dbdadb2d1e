"""The corpus is the same whoever works, in whatever order, and however often a run is killed."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmworks.core.errors import ArtifactError, DataError, DiskFullError, RunInProgressError, WorkerError
from lmworks.data.corpus import clean, units
from lmworks.data.corpus.inputs import InputConfig, Treatment, resolve_inputs
from lmworks.data.corpus.prepare import PrepareConfig, prepare
from lmworks.data.corpus.runner import LocalRunner
from lmworks.data.corpus.units import units_of
from lmworks.data.corpus.workspace import workspace_of
from lmworks.data.deduplication import native
from lmworks.data.extraction.sources import RowFields

WORDS = [f"{a}{b}{c}" for a in "bdgklmnprst" for b in "aeiou" for c in "lmnrst"]


def essay(seed, sentences=12):
    rng = random.Random(seed)
    return " ".join(
        " ".join(["The", *rng.choices(WORDS, k=4), "and", *rng.choices(WORDS, k=4)]) + "." for _ in range(sentences)
    )


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Rows in two files and essays in a folder, in units of a few kilobytes; a third are copies of others."""
    monkeypatch.setattr(units, "UNIT_BYTES", 8000)
    folder = tmp_path / "essays"
    folder.mkdir()
    for seed in range(30):
        (folder / f"{seed:02}.txt").write_text(essay(seed))
    for name, seeds in (("a.jsonl", range(20, 60)), ("b.jsonl", range(50, 80))):
        (tmp_path / name).write_text("".join(json.dumps({"text": essay(seed)}) + "\n" for seed in seeds))
    return folder, tmp_path / "a.jsonl", tmp_path / "b.jsonl"


def texts_of(corpus):
    return [
        sorted(json.loads(line)["text"] for line in (corpus / f"{split}.jsonl").read_text().splitlines())
        for split in ("train", "validation")
    ]


def config(inputs, output, **values):
    return PrepareConfig(inputs=inputs, output=output, validation_fraction=0.2, **values)


def test_large_files_and_many_small_ones_become_units(inputs):
    made = units_of(resolve_inputs([InputConfig(path=path) for path in inputs], Treatment("prose", None, RowFields())))
    assert [unit.name for unit in made] == sorted(unit.name for unit in made)
    assert sum(len(unit.files) for unit in made if unit.part is None) == 30
    parts = [unit.part for unit in made if unit.part is not None]
    assert len(parts) > 4
    assert parts[0].begin == 0
    assert parts[1].begin == parts[0].end
    lines = inputs[1].read_text()[: parts[0].end].count("\n")
    assert parts[1].first_line == lines + 1


def test_parts_name_their_lines(inputs):
    with inputs[1].open("a") as file:
        file.write("{oops\n")
    prepare(config(inputs, inputs[0].parent / "out"))
    report = json.loads((inputs[0].parent / "out" / "report.json").read_text())
    assert [r["place"] for r in report["rejections"]["first"]] == ["a.jsonl:41"]


def test_neither_workers_nor_the_order_of_inputs_change_the_corpus(inputs, tmp_path):
    alone = prepare(config(inputs, tmp_path / "alone", runner={"workers": 1}))
    together = prepare(config(inputs, tmp_path / "together", runner={"workers": 2}))
    assert alone.files == together.files
    assert alone.metrics["exact_duplicates"] == 20
    prepare(config(inputs[::-1], tmp_path / "reversed", runner={"workers": 1}))
    assert texts_of(tmp_path / "alone") == texts_of(tmp_path / "reversed")
    shown = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("alone", "reversed")]
    assert shown[0]["counts"] == shown[1]["counts"]


@pytest.mark.slow  # Ray takes fifteen seconds to start
@pytest.mark.filterwarnings("ignore")
def test_ray_writes_the_same_bytes(inputs, tmp_path):
    ray = pytest.importorskip("ray")
    alone = prepare(config(inputs, tmp_path / "alone", runner={"workers": 1}))
    try:
        spread = prepare(config(inputs, tmp_path / "ray", runner={"kind": "ray", "workers": 2}))
    finally:
        ray.shutdown()
    assert alone.files == spread.files


KILLED = """
import sys
from pathlib import Path
from lmworks.data.corpus import units
from lmworks.data.corpus.inputs import InputConfig, Treatment, resolve_inputs
from lmworks.data.corpus.prepare import PrepareConfig, prepare
units.UNIT_BYTES = 8000
inputs = tuple(map(Path, sys.argv[2:]))
prepare(PrepareConfig(inputs=inputs, output=Path(sys.argv[1]), validation_fraction=0.2, runner={"workers": 1}))
"""


def killed_at_random(inputs, output, rng, seconds):
    """Run in a process that is killed after a random time; whether it had ended by itself."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(output), *map(str, inputs)], stderr=subprocess.PIPE)
    try:
        process.communicate(timeout=rng.uniform(0.1, 1.0) * seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    return process.returncode == 0


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_bytes(inputs, tmp_path, kills):
    began = time.monotonic()
    assert killed_at_random(inputs, tmp_path / "whole", random.Random(0), 100)
    seconds = time.monotonic() - began
    rng = random.Random(kills)
    output = tmp_path / "often"
    for _ in range(kills):
        killed_at_random(inputs, output, rng, seconds)
    assert killed_at_random(inputs, output, rng, 1000)
    for name in ("train.jsonl", "validation.jsonl", "report.json", "report.html"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / ".often.work").exists()


def test_a_run_killed_while_it_removes_its_workspace_leaves_nothing_that_is_half(inputs, tmp_path, monkeypatch):
    def half(folder, **_):
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        for file in files[::2]:
            file.unlink()
        if files:
            raise KeyboardInterrupt

    asked = config(inputs, tmp_path / "out", runner={"workers": 1})
    with monkeypatch.context() as patch:
        patch.setattr("lmworks.data.corpus.workspace.shutil.rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            prepare(asked)
    assert [path.name for path in (tmp_path / ".out.work").iterdir()] == [f"{asked.work_key()}.gone"]
    before = (tmp_path / "out" / "train.jsonl").read_bytes()
    prepare(asked)
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == before
    assert not (tmp_path / ".out.work").exists()


def test_a_killed_worker_is_named_and_the_run_goes_on(inputs, tmp_path):
    with pytest.raises(WorkerError, match=r"a worker was killed while it had to count\. Run the same again"):
        list(LocalRunner(2).map(die_of_three, range(8), "count"))
    assert list(LocalRunner(2).map(die_of_three, range(3), "count")) == [0, 1, 2]


def die_of_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


SLEEPER = """
import os, time
from pathlib import Path
def sleep_here(folder):
    (Path(folder) / f"{os.getpid()}.worker").touch()
    time.sleep(60)
"""
KILLED_PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
from lmworks.data.corpus.runner import LocalRunner
from sleeper import sleep_here
list(LocalRunner(2).map(sleep_here, [sys.argv[1]] * 2, "sleep"))
"""


def test_workers_end_with_the_run_that_was_killed(tmp_path):
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    process = subprocess.Popen([sys.executable, "-c", KILLED_PARENT, str(tmp_path)], stderr=subprocess.PIPE)
    workers = []
    while len(workers) < 2 and process.poll() is None:
        time.sleep(0.05)
        workers = [int(file.stem) for file in tmp_path.glob("*.worker")]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until = time.monotonic() + 20
    while time.monotonic() < until and any(Path(f"/proc/{worker}").exists() for worker in workers):
        time.sleep(0.05)
    assert len(workers) == 2
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def test_two_runs_for_one_output_are_not_at_work_at_once(inputs, tmp_path):
    asked = config(inputs, tmp_path / "out", runner={"workers": 1})
    with (
        workspace_of(asked.output, "another") as held,
        pytest.raises(RunInProgressError, match=r"another run is at work on what .*\.out\.work is for"),
    ):
        prepare(asked)
    assert held.folder.exists(), "nothing of it was removed"
    assert prepare(asked).kind == "corpus"
    assert not (tmp_path / ".out.work").exists()


@pytest.mark.parametrize("what", ["folder of something else", "file", "nowhere"])
def test_an_output_that_cannot_be_is_refused_before_any_work(inputs, tmp_path, what, monkeypatch):
    monkeypatch.setattr("lmworks.data.corpus.prepare.clean_units", lambda *_: pytest.fail("worked"))
    output = tmp_path / "out"
    if what == "file":
        output.write_text("mine")
    elif what == "nowhere":
        output = Path("/proc/none/out")
    else:
        output.mkdir()
        (output / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="cannot be written to" if what == "nowhere" else "is not an artifact"):
        prepare(config(inputs, output))
    assert not (tmp_path / ".out.work").exists()


def test_mistakes_cost_no_work_that_was_done(inputs, tmp_path, monkeypatch):
    asked = config(inputs, tmp_path / "out", runner={"workers": 1})
    with workspace_of(asked.output, asked.work_key()) as held:
        (held.folder / "cleaned").touch()
    for wrong in (
        {"inputs": (tmp_path / "none",)},
        {"inputs": inputs, "preset": "code", "words": ({"name": "x", "path": "none"},)},
    ):
        with pytest.raises(DataError):
            prepare(PrepareConfig(output=asked.output, **wrong))
        assert (held.folder / "cleaned").exists()


@pytest.mark.parametrize("limit", [2_000, 9_000, 40_000])
def test_a_full_device_is_named_and_costs_no_work(inputs, tmp_path, limit):
    asked = config(inputs, tmp_path / "out", runner={"workers": 1})
    whole = prepare(config(inputs, tmp_path / "whole", runner={"workers": 1}))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(DiskFullError, match="File too large"):
            prepare(asked)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / ".out.work").glob("*/.*")), "nothing half-written is left"
    assert prepare(asked).files == whole.files


def test_a_unit_may_be_cleaned_twice_at_once(inputs, tmp_path, monkeypatch):
    """As where the worker of a killed run is still at it: who comes second finds the folder and leaves it."""

    def write_last(folder, *rest, write=clean.write_unit):
        write(folder, *rest)
        shutil.copytree(folder, folder.with_name(folder.name[1:].partition(".tmp-")[0]))

    prepare(config(inputs, tmp_path / "alone", runner={"workers": 1}))
    monkeypatch.setattr(clean, "write_unit", write_last)
    prepare(config(inputs, tmp_path / "out", runner={"workers": 1}))
    assert (tmp_path / "out/train.jsonl").read_bytes() == (tmp_path / "alone/train.jsonl").read_bytes()


def test_units_cleaned_before_are_not_cleaned_again(inputs, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lmworks.data.corpus.prepare.decide", fails)
        with pytest.raises(KeyboardInterrupt):
            prepare(config(inputs, tmp_path / "out", runner={"workers": 1}))
    before = sorted(path.name for path in (tmp_path / ".out.work").glob("*/*"))
    assert len(before) > 5
    cleaned, write = [], clean.write_unit
    monkeypatch.setattr(clean, "write_unit", lambda folder, *rest: (cleaned.append(folder), write(folder, *rest)))
    (inputs[0] / "03.txt").write_text(essay(300))
    prepare(config(inputs, tmp_path / "out", runner={"workers": 1}))
    assert len(cleaned) == 1, "the unit whose file changed"


def test_nothing_left_is_told_by_the_sum_of_the_workers(inputs, tmp_path):
    with pytest.raises(DataError, match="no document is left"):
        prepare(config(inputs, tmp_path / "out", min_words=90_000, runner={"workers": 2}))


def test_what_was_cleaned_by_other_programs_is_not_used(inputs, tmp_path, monkeypatch):
    folder = Path(native.__file__).parent
    assert set(native.SOURCES) == {path.name for path in (*folder.glob("*.cpp"), *folder.glob("*.h"))}
    asked = config(inputs, tmp_path / "out")
    keys = [asked.work_key()]
    for changed in native.SOURCES:
        read = Path.read_bytes
        with monkeypatch.context() as patch:
            patch.setattr(
                Path, "read_bytes", lambda path, read=read, name=changed: read(path) + b"//" * (path.name == name)
            )
            keys.append(asked.work_key())
    monkeypatch.setattr("lmworks.data.extraction.extract.version", lambda package: "0.0")
    assert len({*keys, asked.work_key()}) == len(native.SOURCES) + 2
    assert keys[0] != config(inputs, tmp_path / "out", max_characters=5000).work_key()
