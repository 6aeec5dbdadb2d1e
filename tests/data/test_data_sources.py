"""User input: what is read, and what is refused with its file, line and reason."""

import gzip
import io
import json

import pytest

from lmworks.core.errors import ArtifactError, DataError
from lmworks.core.generation import Document
from lmworks.core.lineage import write_artifact
from lmworks.data.extraction.encodings import decode
from lmworks.data.extraction.html import read_html
from lmworks.data.extraction.pdf import read_pdf
from lmworks.data.extraction.result import UnreadableError
from lmworks.data.extraction.sources import Rejection, RowFields, read_documents


def read(path, **fields):
    items = list(read_documents(path, RowFields(**fields)))
    return [i for i in items if isinstance(i, Document)], [i for i in items if isinstance(i, Rejection)]


def make_pdf(text):
    """The least PDF that shows one line of text."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    data, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"xref\n0 6\n0000000000 65535 f \n%strailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (
        table,
        len(data),
    )
    return data + end


def test_a_folder_of_every_kind_is_read_in_order(tmp_path):
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("plain Zürich", encoding="utf-8")
    (folder / "b.md").write_text("# Title\n\nmark down")
    (folder / "c.jsonl").write_text('{"text": "row one", "license": "MIT"}\n\n{"text": "row two"}\n')
    page = "<html><body><nav>menu</nav><article><p>" + "The main text of a page. " * 20 + "</p></article></body></html>"
    (folder / "d.html").write_text(page)
    (folder / "e.pdf").write_bytes(make_pdf("Words on a page"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["par one", "par two"], "n": [1, 2]}), folder / "f.parquet")
    (folder / "g.txt.gz").write_bytes(gzip.compress(b"packed"))
    (folder / "sub" / "h.txt").write_text("deep")
    (folder / ".hidden.txt").write_text("not mine")
    documents, rejections = read(folder, license="CC0-1.0")
    assert rejections == []
    texts = {d.source: d.text for d in documents}
    assert list(texts) == [
        "mine/a.txt", "mine/b.md", "mine/c.jsonl:1", "mine/c.jsonl:3", "mine/d.html", "mine/e.pdf",
        "mine/f.parquet:1", "mine/f.parquet:2", "mine/g.txt.gz", "mine/sub/h.txt",
    ]  # fmt: skip
    assert texts["mine/a.txt"] == "plain Zürich"
    assert texts["mine/d.html"].startswith("The main text")
    assert "menu" not in texts["mine/d.html"]
    assert texts["mine/e.pdf"].strip() == "Words on a page"
    assert texts["mine/g.txt.gz"] == "packed"
    assert [d.license for d in documents[:3]] == ["CC0-1.0", "CC0-1.0", "MIT"]
    assert len({d.id for d in documents}) == len(documents)
    assert [d.id for d in read(folder)[0]] == [d.id for d in documents], "ids are stable"


BAD_FILES = {
    "program.txt": (b"\x7fELF\x02\x01\x01\x00\x00\x00" * 20, "binary"),
    "control.txt": (bytes(range(1, 9)) * 50, "binary"),
    "cut.txt": ("größer schöner weiter ".encode() * 20 + b"\xc3 und weiter", "encoding"),
    "blank.txt": (b" \n\t\n", "empty"),
    "broken.pdf": (b"%PDF-1.4 nothing follows", "pdf"),
    "scan.pdf": (make_pdf(""), "no text"),
    "empty.html": (b"<html></html>", "no text"),
    "broken.parquet": (b"PAR1 but not really PAR1", "parquet"),
    "binary.jsonl": (b"\x00\x01\x02{}\n", "binary"),
    "short.txt.gz": (gzip.compress(b"some text that is cut" * 99)[:-20], "unreadable"),
    "picture.png": (b"\x89PNG", "unsupported"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_counted_by_name_and_do_not_stop_the_others(tmp_path, name):
    data, reason = BAD_FILES[name]
    (tmp_path / name).write_bytes(data)
    (tmp_path / "zz.txt").write_text("fine")
    documents, rejections = read(tmp_path)
    assert [d.text for d in documents] == ["fine"]
    assert [(r.place, r.reason) for r in rejections] == [(f"{tmp_path.name}/{name}", reason)]


def test_bad_rows_are_named_by_line(tmp_path):
    lines = [
        b'{"text": "good"}', b"{not json", b'{"body": "x"}', b'{"text": 5}', b'{"text": " "}', b"[1]",
        b'{"text": "caf\xe9"}', b'{"text": "good too"}',
    ]  # fmt: skip
    (tmp_path / "r.jsonl").write_bytes(b"\n".join(lines))
    documents, rejections = read(tmp_path / "r.jsonl")
    assert [d.text for d in documents] == ["good", "good too"]
    assert [(r.place, r.reason) for r in rejections] == [
        ("r.jsonl:2", "bad json"), ("r.jsonl:3", "no text field"), ("r.jsonl:4", "no text field"),
        ("r.jsonl:5", "empty"), ("r.jsonl:6", "bad json"), ("r.jsonl:7", "encoding"),
    ]  # fmt: skip
    assert "body" in rejections[1].detail


def test_another_text_field_can_be_named(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"body": "here"}\n')
    assert [d.text for d in read(tmp_path / "r.jsonl", text="body")[0]] == ["here"]


def test_what_is_not_there_or_not_readable_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "x.xyz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"suffix '\.xyz'"):
        read(tmp_path / "x.xyz")
    with pytest.raises(DataError, match="1 files, none of them readable"):
        read(tmp_path)


def test_source_artifacts_are_verified_and_others_refused(tmp_path):
    with write_artifact(tmp_path / "src", "source", config={}) as writer:
        (writer.folder / "documents.jsonl").write_text(
            json.dumps({"id": "i1", "text": "t", "source": "s", "license": "MIT"})
        )
    assert read(tmp_path / "src")[0] == [Document("i1", "t", "s", "MIT", {"begin": 0, "end": 58})]
    (tmp_path / "src" / "documents.jsonl").write_text('{"text": "changed"}')
    with pytest.raises(ArtifactError, match="changed"):
        read(tmp_path / "src")
    with write_artifact(tmp_path / "chat", "source", config={}) as writer:
        (writer.folder / "conversations.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"holds conversations\.jsonl"):
        read(tmp_path / "chat")


def test_encodings_are_recognized_or_refused_never_garbled():
    assert decode("\ufeffmark".encode()) == "mark"
    assert decode("Zürich".encode("utf-16")) == "Zürich"
    russian = "Съешь же ещё этих мягких французских булок, да выпей чаю. Широкая электрификация южных губерний. " * 5
    assert decode(russian.encode("cp1251")) == russian
    with pytest.raises(UnreadableError, match="the file is damaged"):
        decode("naïve café, déjà vu".encode() + b"\xff")


def test_encrypted_pdfs_are_refused():
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(make_pdf("secret"))))
    writer.encrypt("password", algorithm="RC4-128")
    data = io.BytesIO()
    writer.write(data)
    with pytest.raises(UnreadableError, match="encrypted"):
        read_pdf(data.getvalue())


def test_a_page_without_main_text_still_gives_its_words():
    assert "just this" in read_html(b"<html><body><div>just this</div></body></html>").text
