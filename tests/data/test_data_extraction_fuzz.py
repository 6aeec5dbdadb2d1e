"""Hostile and damaged files: never a crash, every rejection named, time and memory bounded."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import resource
import signal
import time
import zipfile

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lmworks.core.generation import Document
from lmworks.data.extraction import rows
from lmworks.data.extraction.encodings import decode_named
from lmworks.data.extraction.guard import GUARD, Guard
from lmworks.data.extraction.result import Rejection, RowFields, UnreadableError
from lmworks.data.extraction.sources import read_documents

REASONS = frozenset((
    "archive", "bad json", "binary", "crash", "csv", "docx", "empty", "encoding", "encrypted", "epub", "generated",
    "http status", "ignored", "link", "lone surrogate", "mail", "memory", "nested archive", "no text",
    "no text field", "not a file", "notebook", "odt",
    "parquet", "parser", "pdf", "time", "too large", "unreadable", "unsupported", "vendored", "warc",
))  # fmt: skip
OPEN_TEXT = b"<o xmlns:t='urn:oasis:names:tc:opendocument:xmlns:text:1.0'><t:p>x</t:p></o>"
PAGE = b"<html><head><title>T</title></head><body><nav>menu</nav><p>Some words of a page.</p></body></html>"


def zipped(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def seeds():
    import pyarrow
    import pyarrow.parquet

    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"] * 9, "url": ["u", "v"] * 9}), table)
    pdf = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    pdf += (
        b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>endobj"
    )
    pdf += b" 4 0 obj<</Length 37>>stream\nBT /F1 12 Tf 72 720 Td (words) Tj ET   \nendstream endobj 5 0 obj"
    pdf += b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj\ntrailer<</Root 1 0 R>>"
    row = json.dumps({"text": "words é 你好", "url": "x", "meta": {"a": [1, {"b": None}]}}).encode() + b"\n"
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n<p>ab\r\n0\r\n\r\n"
    warc = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n" % (len(http), http)
    word = b"<d xmlns:w='http://schemas.openxmlformats.org/wordprocessingml/2006/main'><w:p><w:t>x</w:t></w:p></d>"
    mail = b"Subject: =?gb2312?B?xOO6ww==?=\r\nContent-Type: multipart/mixed; boundary=b\r\n"
    mail += b"\r\n--b\r\n\r\nwords\r\n--b--\r\n"
    return {
        "a.txt": "plain words, größer, 你好".encode(), "a.md": b"# x\n\nwords", "a.jsonl": row * 3,
        "a.json": b"[" + row.strip() + b"," + row.strip() + b"]", "a.csv": b'text,n\n"a\nb",1\nc,2\n',
        "a.tsv": b"text\tn\na\t1\n",
        "a.parquet": table.getvalue(), "a.html": PAGE, "a.pdf": pdf, "a.docx": zipped({"word/document.xml": word}),
        "a.odt": zipped({"content.xml": OPEN_TEXT}),
        "a.epub": zipped({"META-INF/container.xml": b"<c xmlns='u'><rootfile full-path='p'/></c>", "p": b"<p/>"}),
        "a.eml": mail, "a.mbox": b"From x\n" + mail + b"\nFrom y\n" + mail, "a.warc": warc * 2,
        "a.warc.gz": gzip.compress(warc),
        "a.ipynb": b'{"cells": [{"cell_type": "code", "source": "x"}]}', "a.py": b"x = 1\n",
        "a.zip": zipped({"a.txt": "x", "b.html": PAGE}),
        "a.txt.gz": gzip.compress(b"x"), "a.txt.bz2": bz2.compress(b"x"), "a.txt.xz": lzma.compress(b"x"),
    }  # fmt: skip


MARKS = (
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"<", b'"', b"\xf4\x90\x80\x80", b"[" * 50, b"\r", b"\x1b$B",
    b"\xc0\x80", b"&#xD800;", b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>&x;", b"<div>" * 300, b"9" * 5000,
    b"1e400", b"From x\n", b"WARC/1.0\r\n", b"Content-Length: 99999999999\r\n", b"/Filter[/FlateDecode/LZWDecode]",
    b"PK\x05\x06",
)  # fmt: skip
ENCODINGS = ("utf-16", "utf-16-be", "utf-32", "gb18030", "utf-7", "cp037", "iso2022_jp")


def mutated(data, others, chance):
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 30))):
        kind, place = chance.randrange(10), chance.randrange(len(data) + 1)
        if kind == 0 and data:
            data[place % len(data)] = chance.randrange(256)
        elif kind == 1:
            del data[place : place + chance.randrange(1, 40)]
        elif kind == 2:
            data[place:place] = chance.randbytes(chance.randrange(1, 20))
        elif kind == 3:
            data[place:place] = chance.choice(MARKS)
        elif kind == 4:
            data[place:place] = chance.choice(others)[: chance.randrange(2000)]
        elif kind == 5:  # what may be a length
            data[place : place + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x80"))
        elif kind == 6:
            data = data[place:] + data[:place]
        elif kind == 7:
            data = bytearray(data.decode("utf-8", "replace").encode(chance.choice(ENCODINGS), "replace"))
        elif kind == 8:
            data = data[:100_000] * 2
        else:
            del data[place:]
    return bytes(data)


def packed(name, data, chance):
    """Sometimes in a compression or an archive, some of them damaged: `(suffixes, bytes)`."""
    how, suffix = chance.randrange(12), name[1:]
    if how < 4:
        pack = (gzip.compress, bz2.compress, lzma.compress)[how % 3]
        data, suffix = bytearray(pack(data)), suffix + (".gz", ".bz2", ".xz")[how % 3]
    elif how < 7:
        made = io.BytesIO()
        with zipfile.ZipFile(
            made, "w", (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)[how - 4]
        ) as archive:
            archive.writestr(name, data)
            archive.writestr("last.txt", "words")
        data, suffix = bytearray(made.getvalue()), ".zip"
    else:
        return suffix, data
    if chance.random() < 0.6:
        data[chance.randrange(len(data))] ^= 255
    return suffix, bytes(data)


def check(path, count, seconds=20):
    """Read what was made, and tell how often each reason came."""
    reasons = {}
    found = 0
    for item in read_documents(path, RowFields(seconds=seconds)):
        if isinstance(item, Rejection):
            assert item.reason in REASONS, item
            assert item.place
            reasons[item.reason] = reasons.get(item.reason, 0) + 1
        else:
            assert isinstance(item, Document)
            found += 1
            item.text.encode("utf-8")
            json.dumps(item.meta)
            (item.id + item.source + item.license).encode("utf-8")
    assert found + sum(reasons.values()) >= count
    return found, reasons


def fuzz(folder, count, seed):
    chance = random.Random(seed)
    originals = seeds()
    folder.mkdir()
    for number in range(count):
        name = chance.choice(list(originals))
        suffix, data = packed(name, mutated(originals[name], list(originals.values()), chance), chance)
        (folder / f"{number:05d}{suffix}").write_bytes(data)
    return check(folder, count // 2)


def test_every_seed_is_read(tmp_path):
    for name, data in seeds().items():
        (tmp_path / name).write_bytes(data)
    documents = [d for d in read_documents(tmp_path, RowFields()) if isinstance(d, Document)]
    assert {d.source.rpartition("/")[2].partition(":")[0].partition("@")[0].partition("!")[0] for d in documents} == {
        *seeds()
    } - {"a.epub"}


def test_damaged_files_never_stop_the_reading(tmp_path):
    found, reasons = fuzz(tmp_path / "f", 300, seed=0)
    assert found > 30
    assert len(reasons) > 5


@pytest.mark.slow
def test_ten_thousand_damaged_files_never_stop_the_reading(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, reasons = fuzz(tmp_path / "f", 10_000, seed=1)
    print(found, reasons)
    assert found > 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "KiB"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=400),
    st.sampled_from([".txt", ".jsonl", ".json", ".csv", ".warc", ".mbox", ".ipynb", ".zip", ".tar", ".gz"]),
)
def test_arbitrary_bytes_give_documents_or_named_rejections(tmp_path, data, suffix):
    path = tmp_path / f"x{'.txt' if suffix == '.gz' else ''}{suffix}"
    path.write_bytes(data)
    check(path, 0)


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_texts_in_marked_encodings_come_back_or_are_refused(text, encoding):
    assume(encoding != "utf-16" or not text.startswith("\0"))  # the same bytes are the mark of UTF-32
    try:
        found, _ = decode_named(text.encode(encoding))
    except UnreadableError:
        assert encoding == "utf-8", "what has a mark is never refused"
        assert set(text) & set(map(chr, range(32)))
    else:
        assert found == text or (encoding == "utf-8" and text.startswith("\ufeff"))


def test_lone_surrogates_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "cut \\ud83d"}\n{"text": "ok", "id": "\\udc00", "url": "\\ud800"}\n{"text": "\\ud83d\\ude00"}\n'
    )
    found, reasons = check(tmp_path / "a.jsonl", 3)
    assert (found, reasons) == (2, {"lone surrogate": 1})


def test_endless_lines_are_named_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 1 << 20)
    with (tmp_path / "a.jsonl").open("wb") as stream:
        stream.write(b'{"text": "')
        for _ in range(100):
            stream.write(b"x" * (1 << 20))
        stream.write(b'"}\n{"text": "next"}\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, reasons = check(tmp_path / "a.jsonl", 2)
    assert (found, reasons) == (1, {"too large": 1})
    for name in ("a.csv", "a.json"):
        (tmp_path / "a.jsonl").rename(tmp_path / name)
        assert check(tmp_path / name, 1)[0] == 0
        (tmp_path / name).rename(tmp_path / "a.jsonl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000, "KiB"


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_decompression_bombs_are_named(tmp_path, monkeypatch, suffix, pack):
    from lmworks.data.extraction import sources

    monkeypatch.setattr(sources, "_MAX_DOCUMENT_BYTES", 1 << 20)
    (tmp_path / f"a.txt.{suffix}").write_bytes(pack(bytes(1 << 24)))
    assert check(tmp_path / f"a.txt.{suffix}", 1) == (0, {"too large": 1})


def test_zip_bombs_are_named(tmp_path, monkeypatch):
    from lmworks.core.errors import DataError
    from lmworks.data.extraction import archives, office

    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(archives, "MAX_GROWTH", 1)
    row = b'{"text": "words"}\n'
    (tmp_path / "a.zip").write_bytes(zipped({"a.jsonl": row, "b.jsonl": row + b" " * (1 << 21) + row, "c.jsonl": row}))
    found, reasons = check(tmp_path / "a.zip", 1)
    assert found >= 1
    assert reasons == {"unreadable": 1}
    monkeypatch.setattr(office, "_MAX_BYTES", 1 << 20)
    with pytest.raises(DataError, match="decompressed"):
        office.read_docx(zipped({"word/document.xml": bytes(1 << 22)}))


def test_entities_of_xml_are_not_expanded(tmp_path):
    lol = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    word = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    laughs = f'<!DOCTYPE d [<!ENTITY l0 "ha">{lol}]><d {word}><w:p><w:t>&l11;</w:t></w:p></d>'
    (tmp_path / "a.docx").write_bytes(zipped({"word/document.xml": laughs}))
    assert check(tmp_path / "a.docx", 1)[0] == 0


def hostile_pages():
    yield b"<div>" * 200_000 + b"x"
    yield b"<a href=" * 50_000
    yield b"<table><tr><td>" * 5_000 + b"x"
    yield b"<!--" * 100_000
    yield b"<p>" + b"<b><i>" * 20_000 + b"words" + b"</b></i>" * 20_000
    yield b"&" * 200_000
    yield b"<![CDATA[" * 20_000
    yield b'<meta content="' + b"x " * 100_000
    yield b"<font" + b" a=b" * 50_000 + b">x"


def test_hostile_pages_take_bounded_time(tmp_path):
    for number, page in enumerate(hostile_pages()):
        (tmp_path / f"{number}.html").write_bytes(page)
    began = time.monotonic()
    _found, reasons = check(tmp_path, 9, seconds=2)
    assert set(reasons) <= {"no text", "time", "parser", "crash", "memory"}
    assert time.monotonic() - began < 100


@pytest.fixture
def looping(tmp_path, monkeypatch):
    """A guard whose readers misbehave as their suffix says."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("""
import os, sys
if os.environ.get("MISBEHAVE"):
    import lmworks.data.extraction.extract as e
    def loop(*a):
        while True: pass
    def hog(*a):
        return [bytes(1 << 28) for _ in range(1 << 20)]
    def die(*a):
        os.kill(os.getpid(), 11)
    def odd(*a):
        raise KeyError("x")
    def deep(*a):
        return deep(*a)
    e.READERS.update({".loop": loop, ".hog": hog, ".die": die, ".odd": odd, ".deep": deep})
""")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")])))
    monkeypatch.setenv("MISBEHAVE", "1")
    guard = Guard()
    yield guard
    guard.close()


@pytest.mark.parametrize(
    ("suffix", "reason"),
    [(".loop", "time"), (".hog", "memory"), (".die", "crash"), (".odd", "parser"), (".deep", "parser")],
)
def test_readers_that_loop_or_die_are_named_and_others_go_on(looping, suffix, reason):
    with pytest.raises(UnreadableError) as caught:
        looping.read(suffix, b"", RowFields(seconds=1))
    assert caught.value.reason == reason
    assert "page" in looping.read(".html", PAGE, RowFields()).text


def test_a_guard_that_was_killed_is_started_again():
    assert "page" in GUARD.read(".html", PAGE, RowFields()).text
    os.kill(GUARD._process.pid, signal.SIGKILL)
    GUARD._process.wait()
    assert "page" in GUARD.read(".html", PAGE, RowFields()).text
