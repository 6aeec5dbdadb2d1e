"""Every format gives its text, its place and what is known of it, compressed and in archives, here and at a URL."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import pytest
from read_files import one, read, zipped

from lmworks.core.errors import DataError
from lmworks.data.extraction.sources import RowFields, input_files, parts, read_file

PARAGRAPH = "Rivers carry water from the hills to the sea, and towns grow where two of them meet. "
CHINESE = "今天天气很好，我们一起去公园散步。孩子们在湖边放风筝，老人坐在树下下棋，大家都很高兴。"
HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s\r\n"


def zstd(data):
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)]
)
def test_every_compression_is_looked_through_and_its_damage_named(tmp_path, suffix, pack):
    data = json.dumps({"text": "a row"}).encode() + b"\n"
    file = tmp_path / f"r.jsonl{suffix}"
    file.write_bytes(pack(data) + pack(data))
    documents, rejections = read(file)
    assert [d.source for d in documents] == [f"r.jsonl{suffix}:1", f"r.jsonl{suffix}:2"]
    assert [(d.meta["begin"], d.meta["end"]) for d in documents] == [(0, len(data)), (len(data), 2 * len(data))]
    assert rejections == []
    file.write_bytes(pack(data * 5000)[:-12])
    assert [r.reason for r in read(file)[1]][-1] in ("unreadable", "bad json")
    file.write_bytes(b"nothing of the kind at all")
    assert [r.reason for r in read(file)[1]] == ["unreadable"]


def test_rows_know_their_bytes_and_fields(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text(
        '{"text": "é", "url": "https://a.example/x", "timestamp": "2020-01-02", "license": "MIT"}\n{"text": "b"}\n'
    )
    documents, _ = read(file)
    data = file.read_bytes()
    assert documents[0].license == "MIT"
    assert documents[0].meta["url"] == "https://a.example/x"
    assert documents[0].meta["date"] == "2020-01-02"
    for document in documents:
        assert json.loads(data[document.meta["begin"] : document.meta["end"]])["text"] == document.text


def test_parts_of_rows_are_the_whole(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps({"text": f"row {i}" + "x" * (i * 7 % 50)}) + "\n" for i in range(200)))
    (found,) = input_files(file)
    whole = list(read_file(found, RowFields()))
    for size in (10, 500, 10_000):
        divided = [d for part in parts(file, size) for d in read_file(found, RowFields(), part)]
        assert divided == whole


@pytest.mark.parametrize(
    "text",
    ['[{"text": "a"}, {"text": "b"}, 5]', '{"text": "a"}\n{"text": "b"}\n5\n', '{"text":\n "a"} {"text": "b"} 5'],
)
def test_json_arrays_and_sequences_are_streamed(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    documents, rejections = read(tmp_path / "a.json")
    assert [d.text for d in documents] == ["a", "b"]
    assert [(r.place, r.reason) for r in rejections] == [("a.json:3", "bad json")]


def test_json_values_longer_than_a_block_are_read_whole(tmp_path):
    long = "word " * 100_000
    (tmp_path / "a.json").write_text(json.dumps([{"text": long}, {"text": "short"}] * 2))
    assert [len(d.text) for d in read(tmp_path / "a.json")[0]] == [500_000, 5, 500_000, 5]


def test_separated_values_in_any_encoding(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        f'id,text,n\nx1,"{CHINESE}\n第二行",5\nx2,short\nx3,{CHINESE},1\n'.encode("gb18030")
    )
    documents, rejections = read(tmp_path / "a.csv")
    assert [(d.id, d.text.splitlines()[-1]) for d in documents] == [("x1", "第二行"), ("x3", CHINESE)]
    assert [(r.place, r.reason) for r in rejections] == [("a.csv:4", "csv")]
    (tmp_path / "b.tsv").write_text("text\turl\nhello\thttps://a.example\n")
    assert one(tmp_path / "b.tsv").meta["url"] == "https://a.example"
    (tmp_path / "c.csv").write_text("body;n\nx;1\n")
    assert read(tmp_path / "c.csv")[1][0].reason == "no text field"
    assert one(tmp_path / "c.csv", text="body").text == "x"


def record(kind, content, url="https://a.example/"):
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2020-01-02T03:04:05Z\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content + b"\r\n\r\n"


def test_web_archives_give_pages_with_their_addresses(tmp_path):
    page = f"<html><head><title>T</title></head><body><article><p>{PARAGRAPH * 9}</p></article></body></html>".encode()
    chinese = f"<html><body><main><p>{CHINESE * 5}</p></main></body></html>".encode("gb18030")
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(page), page)
    packed = gzip.compress(page)
    items = [
        record("warcinfo", b"software: x"),
        record("response", HTTP % (b"text/html", b"") + page),
        record("response", HTTP % (b"text/html; charset=gb2312", b"") + chinese),
        record("response", HTTP % (b"text/html", b"Transfer-Encoding: chunked\r\n") + chunked),
        record("response", HTTP % (b"text/html", b"Content-Encoding: gzip\r\n") + packed),
        record("response", b"HTTP/1.1 404 Not Found\r\n\r\nno"),
        record("response", HTTP % (b"image/png", b"") + b"\x89PNG"),
        record("conversion", b"plain text", "https://b.example/"),
    ]
    items[-1] = items[-1].replace(b"WARC-Date", b"Content-Type: text/plain\r\nWARC-Date")
    (tmp_path / "a.warc.gz").write_bytes(b"".join(map(gzip.compress, items)))
    documents, rejections = read(tmp_path / "a.warc.gz")
    assert [d.text.count("Rivers") for d in documents] == [9, 0, 9, 9, 0]
    assert CHINESE in documents[1].text
    assert documents[0].meta["url"] == "https://a.example/"
    assert documents[0].meta["title"] == "T"
    assert documents[0].meta["date"].startswith("2020-01-02")
    assert documents[0].meta["begin"] == len(items[0])
    assert [r.reason for r in rejections] == ["http status", "unsupported"]
    (tmp_path / "b.warc").write_bytes(b"".join(items)[:-30])
    assert read(tmp_path / "b.warc")[1][-1].reason == "warc"


def test_notebooks_keep_prose_and_code(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# Head\n", "prose"]},
        {"cell_type": "code", "source": "x = 1", "outputs": [{"text": "no"}]},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells, "metadata": {"language_info": {"name": "python"}}}))
    document = one(tmp_path / "a.ipynb")
    assert document.text == "# Head\nprose\n\n```python\nx = 1\n```\n"
    assert document.meta["code_language"] == "python"


def test_code_trees_with_licences_and_without_what_others_or_programs_wrote(tmp_path):
    tree = tmp_path / "tree"
    for folder in ("src/deep", "node_modules/x", "other"):
        (tree / folder).mkdir(parents=True)
    (tree / "LICENSE").write_text(
        "MIT License\n\nPermission is hereby granted, free of charge, to any\nperson obtaining a copy"
    )
    (tree / "other" / "COPYING").write_text("GNU GENERAL PUBLIC LICENSE\n  Version 3, 29 June 2007")
    (tree / "Makefile").write_text("all:\n\ttrue\n")
    (tree / "src/deep/a.rs").write_text("fn main() {}\n")
    (tree / "src/b.py").write_text("# SPDX-License-Identifier: BSD-2-Clause\nx = 1\n")
    (tree / "src/c.min.js").write_text("x")
    (tree / "src/d.js").write_text("x=1;" * 1000)
    (tree / "src/e.go").write_text("// Code generated by stringer; DO NOT EDIT.\npackage x\n")
    (tree / "node_modules/x/i.js").write_text("x")
    (tree / "other/f.c").write_text("int x;\n")
    documents, rejections = read(tree)
    assert {d.source: (d.meta["code_language"], d.license) for d in documents} == {
        "tree/Makefile": ("Makefile", "MIT"), "tree/src/deep/a.rs": ("Rust", "MIT"),
        "tree/src/b.py": ("Python", "BSD-2-Clause"), "tree/other/f.c": ("C", "GPL-3.0"),
    }  # fmt: skip
    assert {r.place: r.reason for r in rejections} == {
        "tree/LICENSE": "unsupported", "tree/other/COPYING": "unsupported", "tree/src/c.min.js": "vendored",
        "tree/src/d.js": "generated", "tree/src/e.go": "generated", "tree/node_modules/x/i.js": "vendored",
    }  # fmt: skip


def test_archives_are_read_member_by_member(tmp_path):
    files = {"d/a.txt": b"first", "d/b.jsonl": b'{"text": "row"}\n{', "d/c.txt.gz": gzip.compress(b"packed"),
             ".h/x.txt": b"hidden",
             "in.zip": zipped({"x.txt": "deep"}), "p.png": b"\x89PNG"}  # fmt: skip
    (tmp_path / "a.zip").write_bytes(zipped(files))
    for name, mode in (
        ("a.tar", "w"),
        ("a.tar.gz", "w:gz"),
        ("a.tgz", "w:gz"),
        ("a.tar.bz2", "w:bz2"),
        ("a.tar.xz", "w:xz"),
    ):
        with tarfile.open(tmp_path / name, mode) as archive:
            for inner, content in files.items():
                info = tarfile.TarInfo(inner)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    for file in sorted(tmp_path.iterdir()):
        documents, rejections = read(file)
        assert {d.source.removeprefix(f"{file.name}!"): d.text for d in documents} == {
            "d/a.txt": "first", "d/b.jsonl:1": "row", "d/c.txt.gz": "packed", "in.zip!x.txt": "deep",
        }, file.name  # fmt: skip
        assert {r.place.removeprefix(f"{file.name}!"): r.reason for r in rejections} == {
            "d/b.jsonl:2": "bad json", "p.png": "unsupported",
        }  # fmt: skip


def test_urls_are_read_through_fsspec(tmp_path):
    import fsspec

    (tmp_path / "d.txt").write_text("fourth")

    system = fsspec.filesystem("memory")
    system.pipe("/bucket/f/a.txt", b"first")
    system.pipe("/bucket/f/sub/b.jsonl.gz", gzip.compress(b'{"text": "second"}\n'))
    for url in ("memory://bucket/f", Path("memory://bucket/f")):
        documents, rejections = read(url)
        assert [(d.source, d.text) for d in documents] == [("f/a.txt", "first"), ("f/sub/b.jsonl.gz:1", "second")]
        assert rejections == []
    assert one("memory://bucket/f/a.txt").text == "first"
    system.pipe("/bucket/packed.zip", zipped({"in/c.txt": "third"}))
    for url in ("zip://in/c.txt::memory://bucket/packed.zip", "zip://::memory://bucket/packed.zip"):
        assert one(url).text == "third"
    for url in (
        f"simplecache::file://{tmp_path}",
        f"file://{tmp_path}",
        f"file:{tmp_path}",
        f"FILE://localhost{tmp_path}",
    ):
        assert one(url).text == one(Path(url)).text == "fourth"
    with pytest.raises(DataError, match="does not exist"):
        read("memory://bucket/nothing")
    with pytest.raises(DataError, match="cannot be opened"):
        read("nosuchstore://bucket/x")


def test_rows_end_at_line_ends_alone(tmp_path):
    (tmp_path / "a.csv").write_text('"na\nme",text\n1,one\u2028still\n2,two\x0cstill\n', encoding="utf-8")
    documents = read(tmp_path / "a.csv")[0]
    assert [d.text for d in documents] == ["one\u2028still", "two\x0cstill"]
    (tmp_path / "b.csv").write_bytes(b"text,n\rone,1\rtwo,2\r")
    assert [d.text for d in read(tmp_path / "b.csv")[0]] == ["one", "two"]
    rows = "".join(f"{i},{'word ' * 50}\r\n" for i in range(3000))
    (tmp_path / "c.csv").write_bytes(f"n,text\r\n{rows}".encode())
    assert [d.source for d in read(tmp_path / "c.csv")[0]] == [f"c.csv:{i}" for i in range(2, 3002)]


def test_parquet_texts_in_other_types(tmp_path):
    import pyarrow
    import pyarrow.parquet

    columns = {
        "dictionary": pyarrow.array(["é"]).dictionary_encode(), "large": pyarrow.array(["é"], pyarrow.large_string()),
        "binary": pyarrow.array(["é".encode()]), "inner": pyarrow.array([{"text": {"body": "é", "n": 1}}]),
        "bad": pyarrow.array([b"\xff"]),
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet", compression="zstd")
    for field in ("dictionary", "large", "binary", "inner.text.body"):
        assert one(tmp_path / "a.parquet", text=field).text == "é"
    reasons = {
        field: read(tmp_path / "a.parquet", text=field)[1][0].reason for field in ("bad", "inner", "inner.x", "y")
    }
    assert reasons == {"bad": "encoding", "inner": "no text field", "inner.x": "no text field", "y": "no text field"}
    (tmp_path / "a.jsonl").write_text('{"a": {"b": "deep"}, "a.c": "flat"}\n')
    assert [one(tmp_path / "a.jsonl", text=field).text for field in ("a.b", "a.c")] == ["deep", "flat"]


def test_facts_of_rows_are_made_writable(tmp_path):
    deep = "[" * 200 + "]" * 200
    (tmp_path / "a.jsonl").write_text(
        '{"text": "ok", "meta": {"a\\ud800": ["\\ud800", NaN, 1e999], "deep": ' + deep + "}}"
    )
    meta = one(tmp_path / "a.jsonl").meta
    assert meta["a?"] == ["?", "nan", "inf"]
    assert json.loads(json.dumps(meta, allow_nan=False, ensure_ascii=False).encode("utf-8")) == meta
