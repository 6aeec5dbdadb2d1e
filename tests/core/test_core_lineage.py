"""Artifacts appear whole or not at all, whatever happens in between, and say when they no longer are what they were."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmworks.core.errors import ArtifactError, DiskFullError
from lmworks.core.lineage import MANIFEST, content_hash, load_manifest, parent_of, verify, write_artifact
from lmworks.core.trace import trace


def make(path: Path, text: str = "x", parents: dict[str, Path] | None = None) -> Path:
    with write_artifact(path, "thing", config={"text": text}, parents=parents) as artifact:
        (artifact.folder / "sub").mkdir()
        (artifact.folder / "sub/a.txt").write_text(text)
    return path


def test_round_trip_and_verification(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    assert verify(path).files.keys() == {"sub/a.txt"}
    assert load_manifest(path).content_hash == content_hash(path)
    (path / "sub/a.txt").write_text("y")
    with pytest.raises(ArtifactError, match=r"changed \['sub/a.txt'\]"):
        verify(path)
    (path / "sub/a.txt").unlink()
    with pytest.raises(ArtifactError, match=r"missing \['sub/a.txt'\]"):
        verify(path)


def test_content_hash_depends_on_content_alone(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    assert content_hash(one) == content_hash(two) != content_hash(make(tmp_path / "three", "z"))


def test_failure_leaves_the_old_artifact_and_nothing_else(tmp_path: Path) -> None:
    path = make(tmp_path / "a", "old")

    def fail() -> None:
        with write_artifact(path, "thing", config={}) as artifact:
            (artifact.folder / "half").write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    assert (verify(path).path / "sub/a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with write_artifact(tmp_path / "a", "thing", config={}):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError, match=r"No space left.*nothing half-written"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not an artifact"):
        make(tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 99}', '{"format_version": 1, "parents": [1]}'])
def test_damaged_manifest_is_a_named_error(tmp_path: Path, text: str) -> None:
    (make(tmp_path / "a") / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=r"lineage\.json"):
        load_manifest(tmp_path / "a")


def test_kill_at_any_instant_leaves_a_whole_artifact(tmp_path: Path) -> None:
    """A process rewrites one artifact without pause and is killed at random; what stands is always whole."""
    writer = (
        "import itertools, pathlib, sys\nfrom lmworks.core.lineage import write_artifact\n"
        "for n in itertools.count():\n"
        "    with write_artifact(pathlib.Path(sys.argv[1]), 'thing', config={'n': n}) as a:\n"
        "        for name in 'abc':\n"
        "            (a.folder / name).write_text(str(n) * 1000)\n"
        "    print(n, flush=True)\n"
    )
    path = tmp_path / "a"
    for round_ in range(6):
        with subprocess.Popen([sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.readline() == b"0\n"
            time.sleep(0.003 * round_ + 0.001)
            os.kill(process.pid, signal.SIGKILL)
        manifest = verify(path)
        assert (path / "a").read_text() == (path / "c").read_text() == str(manifest.config["n"]) * 1000
        make(path)  # the next writer cleans up behind the dead one
        assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_trace_marks_what_is_gone_and_what_changed(tmp_path: Path) -> None:
    plain = tmp_path / "notes.txt"
    plain.write_text("plain")
    source = make(tmp_path / "source", "s", {"notes": plain})
    other = make(tmp_path / "other", "o")
    model = make(tmp_path / "model", "m", {"source": source, "other": other})
    assert [(n.where.name, n.state) for n in trace(model).walk()] == [
        ("notes.txt", "intact"), ("source", "intact"), ("other", "intact"), ("model", "intact")
    ]  # fmt: skip
    plain.write_text("edited")
    make(other, "new")
    states = {n.where.name: n.state for n in trace(model).walk()}
    assert states == {"notes.txt": "changed", "source": "intact", "other": "changed", "model": "intact"}
    for file in sorted(source.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    source.rmdir()
    assert {n.where.name: n.state for n in trace(model).walk()}["source"] == "gone"


def test_trace_sees_bytes_changed_behind_a_manifest(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    model = make(tmp_path / "model", "m", {"source": source})
    (source / "sub/a.txt").write_text("tampered")
    assert trace(model).ancestors[0].state == "changed"
    assert trace(model, check=False).ancestors[0].state == "intact"


def test_trace_leads_from_a_file_to_the_artifact_it_is_part_of(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    model = make(tmp_path / "model", "m", {"weights": source / "sub/a.txt"})
    file = trace(model).ancestors[0]
    assert (file.parent.kind, file.ancestors[0].where.name, file.ancestors[0].parent.role) == (
        "file",
        "source",
        "part of",
    )
    assert trace(source / "sub/a.txt").ancestors[0].where.name == "source"
    with pytest.raises(ArtifactError, match="has no lineage"):
        trace(tmp_path / "nowhere")


def test_moved_tree_still_traces(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    model = make(tmp_path / "one/model", "m", {"source": make(tmp_path / "one/source")})
    (tmp_path / "one").rename(tmp_path / "two")
    assert trace(tmp_path / "two/model").ancestors[0].state == "intact"
    assert not model.exists()
    assert json.loads((tmp_path / "two/model" / MANIFEST).read_text())["parents"][0]["path"] == "source"


def test_one_file_is_an_artifact_by_the_manifest_beside_it(tmp_path: Path) -> None:
    for text in ("first", "second"):  # the second replaces the first
        with write_artifact(tmp_path / "x.bin", "tokens", config={}, one_file=True) as writer:
            (writer.folder / "x.bin").write_text(text)
            (writer.folder / "x.bin.index").write_text("1")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.bin", "x.bin.index", "x.bin.lineage.json"]
    assert (tmp_path / "x.bin").read_text() == "second"
    manifest = verify(tmp_path / "x.bin")
    assert parent_of(tmp_path / "x.bin", tmp_path).content_hash == manifest.content_hash
    (tmp_path / "x.bin.index").write_text("2")
    with pytest.raises(ArtifactError, match=r"x\.bin\.index"):
        verify(tmp_path / "x.bin")
    (tmp_path / "mine.bin").write_text("mine")
    with (
        pytest.raises(ArtifactError, match="is not an artifact"),
        write_artifact(tmp_path / "mine.bin", "tokens", config={}, one_file=True),
    ):
        pass


def test_a_folder_in_an_artifact_is_traced_to_it(tmp_path: Path) -> None:
    with write_artifact(tmp_path / "tokens", "tokens", config={}) as writer:
        (writer.folder / "train").mkdir()
        (writer.folder / "train/shard").write_text("1")
    with write_artifact(tmp_path / "made", "tokens", config={}, parents={"train.0": tmp_path / "tokens/train"}):
        pass
    (part,) = trace(tmp_path / "made").ancestors
    assert [(node.state, node.parent.kind) for node in (part, *part.ancestors)] == [
        ("intact", "folder"), ("intact", "tokens"),
    ]  # fmt: skip
