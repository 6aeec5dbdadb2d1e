"""What of a folder is read: `.gitignore` as git decides, links, pipes, odd names; and archives inside of archives."""

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from lmworks.core import lineage
from lmworks.core.errors import DataError
from lmworks.core.generation import Document
from lmworks.data.corpus.inputs import InputConfig, Treatment, resolve_inputs
from lmworks.data.corpus.prepare import PrepareConfig, prepare
from lmworks.data.corpus.units import units_of
from lmworks.data.extraction import archives
from lmworks.data.extraction.folders import entries
from lmworks.data.extraction.result import RowFields
from lmworks.data.extraction.sources import read_documents

IGNORED = {
    ".gitignore": "*.log\nbuild/\n/top.py\n!keep.log\ndocs/**/draft.md\n# no rule\n\\#odd.py\n[bad\nspaced\\ .py\n",
    "sub/.gitignore": "!loud.log\n*.tmp.py\n",
    "sub/deep/.gitignore": "*\n!c.py\n",
}
FILES = ("a.py", "a.log", "keep.log", "top.py", "sub/top.py", "sub/loud.log", "sub/x.tmp.py", "sub/quiet.log",
         "build/b.py", "sub/build/b.py", "docs/a/b/draft.md", "docs/draft.md", "docs/final.md", "sub/deep/c.py",
         "sub/deep/d.py", "#odd.py", "spaced .py", "buildings/b.py")  # fmt: skip


def tree(root):
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x = 1\n")
    for name, rules in IGNORED.items():
        (root / name).write_text(rules)


def read(path):
    found = list(read_documents(path, RowFields()))
    documents = {item.source: item for item in found if isinstance(item, Document)}
    return documents, {item.place: item.reason for item in found if not isinstance(item, Document)}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the oracle")
def test_ignored_is_what_git_ignores(tmp_path):
    tree(tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", "-z"], cwd=tmp_path, capture_output=True, check=True
    ).stdout.decode().split("\0")  # fmt: skip
    read_ones = {entry.path.relative_to(tmp_path).as_posix() for entry in entries(tmp_path) if not entry.refused}
    assert read_ones == {name for name in listed if name and not name.rpartition("/")[2].startswith(".")}
    assert 5 < len(read_ones) < len(FILES) - 5


def test_what_is_ignored_is_named_and_counted(tmp_path):
    (tmp_path / "t").mkdir()
    tree(tmp_path / "t")
    documents, rejections = read(tmp_path / "t")
    assert "t/sub/deep/c.py" in documents
    assert rejections["t/build"] == rejections["t/sub/deep/d.py"] == "ignored"
    assert "t/build/b.py" not in rejections, "a folder is one entry"
    (tmp_path / ".gitignore").write_text("*\n")
    assert read(tmp_path / "t")[0].keys() == documents.keys(), "rules above what is given do not hold"


def test_links_pipes_and_odd_names_are_named(tmp_path, monkeypatch):
    def closed(file, sha256=lineage.sha256):
        if file.name == "too.txt":
            raise PermissionError(13, "as of a file of someone else's")
        return sha256(file)

    folder = tmp_path / "f"
    (folder / "real").mkdir(parents=True)
    (folder / "real/a.txt").write_text("words")
    os.mkfifo(folder / "b.jsonl")
    (folder / "circle").symlink_to(folder)
    (folder / "self.txt").symlink_to(folder / "self.txt")
    (folder / "gone.jsonl").symlink_to(folder / "nowhere")
    (folder / "memory.txt").symlink_to("/proc/self/mem")
    (folder / "too.txt").symlink_to(folder / "real/a.txt")
    (folder / os.fsdecode(b"bad\xff.txt")).write_text("other words")
    documents, rejections = read(folder)
    assert set(documents) == {"f/real/a.txt", "f/too.txt", "f/bad\\xff.txt"}
    assert rejections == {
        "f/b.jsonl": "not a file", "f/circle": "link", "f/self.txt": "unreadable", "f/gone.jsonl": "unreadable",
        "f/memory.txt": "unreadable",
    }  # fmt: skip
    units = units_of(resolve_inputs([InputConfig(path=folder)], Treatment("prose", None, RowFields())))
    assert [unit.fingerprint() for unit in units] == [unit.fingerprint() for unit in units]
    monkeypatch.setattr("lmworks.core.lineage.sha256", closed)
    prepare(
        PrepareConfig(inputs=(folder,), output=tmp_path / "out", preset="none", validation_fraction=0.0,
                      runner={"workers": 1})
    )  # fmt: skip
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert {told["place"] for told in report["rejections"]["first"]} == set(rejections)


def zipped(files):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def tarred(files, mode="w"):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nwords of a page"
WARC = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n" % (len(HTTP), HTTP)


def test_archives_in_archives_are_read(tmp_path):
    inner = zipped({"c.txt": b"deepest", "d.tar": tarred({"x.txt": b"too deep"})})
    (tmp_path / "a.tar").write_bytes(
        tarred({"b.tgz": tarred({"c.zip": inner}, "w:gz"), "w.warc.gz": gzip.compress(WARC), "e.txt": b"after",
                "broken.zip": inner[:50], "z.zip": zipped({"y.jsonl": b'{"text": "row"}\n'})})
    )  # fmt: skip
    documents, rejections = read(tmp_path / "a.tar")
    assert {place: item.text for place, item in documents.items()} == {
        "a.tar!b.tgz!c.zip!c.txt": "deepest", "a.tar!w.warc.gz@0": "words of a page", "a.tar!e.txt": "after",
        "a.tar!z.zip!y.jsonl:1": "row",
    }  # fmt: skip
    assert rejections == {"a.tar!b.tgz!c.zip!d.tar": "nested archive", "a.tar!broken.zip": "archive"}


def test_what_holds_nothing_is_named(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    for name, content in {"a.mbox": b"no letter", "b.jsonl": b"\n\n", "c.tar": tarred({".h.txt": b"hidden"}),
                          "d.tar": tarred({"../../e.txt": b"climbs"})}.items():  # fmt: skip
        (folder / name).write_bytes(content)
    documents, rejections = read(folder)
    assert {place: item.text for place, item in documents.items()} == {"f/d.tar!../../e.txt": "climbs"}
    assert rejections == dict.fromkeys(("f/a.mbox", "f/b.jsonl", "f/c.tar"), "empty")


@pytest.mark.parametrize("wrap", [zipped, tarred, lambda files: tarred(files, "w:gz")])
def test_all_that_comes_out_of_a_file_counts_once_for_all(tmp_path, monkeypatch, wrap):
    """No archive or compressed member is too large; the sum of them is."""
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1 << 22)
    monkeypatch.setattr(archives, "MAX_GROWTH", 1)
    blank = b" " * (1 << 20) + b"\n"
    suffix = {b"PK": "zip", b"\x1f\x8b": "tgz"}
    for name, content in (("in.zip", zipped({"a.jsonl": blank})), ("in.jsonl.gz", gzip.compress(blank))):
        data = wrap({f"{n}{name}": content for n in range(20)})
        file = tmp_path / f"bomb.{suffix.get(data[:2], 'tar')}"
        file.write_bytes(data)
        documents, rejections = read(file)
        assert not documents
        assert rejections[file.name] == "unreadable"


def test_folders_may_lie_deeper_than_calls_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        Path("d").mkdir()
        os.chdir("d")
    Path("x.txt").write_text("words")
    os.chdir(tmp_path)
    try:
        (entry,) = entries(tmp_path)
        assert entry.path.read_text() == "words"
    finally:
        subprocess.run(["rm", "-rf", "d"], check=True)


def test_a_pipe_is_no_input(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(DataError, match="no file and no folder"):
        read(tmp_path / "a.txt")


def test_members_that_cannot_be_opened_do_not_end_the_archive(tmp_path):
    packed = bytearray(zipped({"secret.txt": b"x", "none.txt": b"x", "odd.txt": b"x", "open.txt": b"words"}))
    for name, offset, value in ((b"secret.txt", 6, 1), (b"odd.txt", 8, 99)):
        packed[packed.find(name) - 30 + offset] = value
        packed[packed.rfind(name) - 46 + offset + 2] = value
    for place in (packed.find(b"none.txt"), packed.rfind(b"none.txt")):
        packed[place : place + 8] = bytes(8)
    (tmp_path / "a.zip").write_bytes(packed)
    documents, rejections = read(tmp_path / "a.zip")
    assert list(documents) == ["a.zip!open.txt"]
    assert rejections.pop("a.zip!") == "unsupported"
    assert rejections == {"a.zip!secret.txt": "encrypted", "a.zip!odd.txt": "archive"}
