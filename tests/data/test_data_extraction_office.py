"""Office files, books and mail: the text as it is meant, once, with what is known of it."""

import hashlib
import mailbox
from email.message import EmailMessage

import pytest
from read_files import one, read, zipped

PARAGRAPH = "Rivers carry water from the hills to the sea, and towns grow where two of them meet. "
CHINESE = "今天天气很好，我们一起去公园散步。孩子们在湖边放风筝，老人坐在树下下棋，大家都很高兴。"
WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
CORE = '<c xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Title</dc:title><dc:creator>Ann</dc:creator></c>'


def test_office_files(tmp_path):
    body = "".join(
        f"<w:p><w:r><w:t>{t}</w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>"
        for t in ("One", "二")
    )
    table = (
        "<w:tbl><w:tr>"
        + "".join(f"<w:tc><w:p><w:r><w:t>{t}</w:t></w:r></w:p></w:tc>" for t in "ab")
        + "</w:tr></w:tbl>"
    )
    (tmp_path / "a.docx").write_bytes(zipped({
        "word/document.xml": f"<w:document {WORD}><w:body>{body}{table}</w:body></w:document>",
        "docProps/core.xml": CORE,
    }))  # fmt: skip
    document = one(tmp_path / "a.docx")
    assert document.text.split() == ["One", "二", "a", "b"]
    assert "One\n二\na" in document.text
    assert (document.meta["title"], document.meta["author"]) == ("Title", "Ann")
    assert document.meta["sha256"] == hashlib.sha256((tmp_path / "a.docx").read_bytes()).hexdigest()
    odt = '<o xmlns:t="urn:oasis:names:tc:opendocument:xmlns:text:1.0">'
    odt += "<t:h>Head</t:h><t:p>Some <t:span>text</t:span>.</t:p></o>"
    (tmp_path / "b.odt").write_bytes(zipped({"content.xml": odt}))
    assert one(tmp_path / "b.odt").text == "Head\nSome text.\n"


def test_epub_chapters_follow_the_spine(tmp_path):
    chapter = "<html xmlns='http://www.w3.org/1999/xhtml'><body><p>{} " + PARAGRAPH + "</p></body></html>"
    opf = (
        '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Book'
        '</dc:title><dc:rights>CC-BY-4.0</dc:rights></metadata><manifest><item id="n" href="n.xhtml" properties="nav"/>'
        '<item id="a" href="t/a%20b.xhtml"/><item id="b" href="b.xhtml"/><item id="c" href="missing.xhtml"/></manifest>'
        '<spine><itemref idref="n"/><itemref idref="b"/><itemref idref="a"/><itemref idref="c"/></spine></package>'
    )
    container = '<c xmlns="urn:x"><rootfile full-path="E/p.opf"/></c>'
    (tmp_path / "a.epub").write_bytes(zipped({
        "META-INF/container.xml": container, "E/p.opf": opf, "E/n.xhtml": chapter.format("Contents"),
        "E/b.xhtml": chapter.format("First"), "E/t/a b.xhtml": chapter.format("Second"),
    }))  # fmt: skip
    document = one(tmp_path / "a.epub")
    assert document.text.index("First") < document.text.index("Second")
    assert "Contents" not in document.text
    assert (document.meta["title"], document.license) == ("Book", "CC-BY-4.0")


def test_mail_and_mailboxes(tmp_path):
    message = EmailMessage()
    message["Subject"], message["From"], message["Message-ID"] = "Grüße 你好", "a@b.example", "<1@b.example>"
    message.set_content(f"{CHINESE}\nFrom here on", charset="gb2312", cte="base64")
    message.add_alternative(f"<p>{CHINESE} in HTML</p>", subtype="html")
    message.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename="x.png")
    (tmp_path / "a.eml").write_bytes(bytes(message))
    document = one(tmp_path / "a.eml")
    assert document.text.startswith(f"Grüße 你好\n\n{CHINESE}")
    assert "HTML" not in document.text
    assert document.meta["url"] == "mid:1@b.example"
    box = mailbox.mbox(tmp_path / "b.mbox")
    for number in range(3):
        plain = EmailMessage()
        plain["Subject"] = f"number {number}"
        plain.set_content("first\n\nFrom the start of a line\n" if number < 2 else "\n")
        box.add(plain)
    box.close()
    documents, rejections = read(tmp_path / "b.mbox")
    assert [d.meta["title"] for d in documents] == ["number 0", "number 1"]
    assert documents[1].text.rstrip().endswith("\nFrom the start of a line")
    data = (tmp_path / "b.mbox").read_bytes()
    assert b"number 1" in data[documents[1].meta["begin"] : documents[1].meta["end"]]
    assert [(r.place, r.reason) for r in rejections] == [("b.mbox:3", "no text")]


def test_docx_boxes_notes_and_moves_are_read_once(tmp_path):
    box = "<w:txbxContent><w:p><w:r><w:t>Boxed</w:t></w:r></w:p></w:txbxContent>"
    body = (
        f"<w:p><w:r><w:t>Before, </w:t></w:r><a:Choice>{box}</a:Choice><a:Fallback>{box}</a:Fallback>"
        "<w:r><w:t>after.</w:t></w:r></w:p>"
        "<w:p><w:moveFrom><w:r><w:t>Moved</w:t></w:r></w:moveFrom></w:p>"
        "<w:p><w:moveTo><w:r><w:t>Moved</w:t></w:r></w:moveTo> <a:t>E=m</a:t><w:noBreakHyphen/></w:p>"
    )
    relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    strict = 'xmlns:w="http://purl.oclc.org/ooxml/wordprocessingml/main"'
    for space in (WORD, strict):
        (tmp_path / "a.docx").write_bytes(zipped({
            "_rels/.rels": f'<R><Relationship Type="{relation}" Target="/word/second.xml"/></R>',
            "word/second.xml": f'<w:document {space} xmlns:a="urn:a"><w:body>{body}</w:body></w:document>',
            "word/footnotes.xml": f"<w:n {space}><w:p><w:r><w:t>A note.</w:t></w:r></w:p></w:n>",
        }))  # fmt: skip
        assert one(tmp_path / "a.docx").text.split("\n") == ["Before, after.", "Boxed", "", "MovedE=m-", "A note.", ""]


def test_odt_spaces_notes_boxes_and_cells_stand_where_they_belong(tmp_path):
    (tmp_path / "a.odt").write_bytes(zipped({"content.xml": (
        '<o xmlns:t="urn:oasis:names:tc:opendocument:xmlns:text:1.0" xmlns:d="urn:d" xmlns:b="urn:b">'
        "<t:tracked-changes><t:deletion><t:p>gone</t:p></t:deletion></t:tracked-changes>"
        '<t:p>one<t:tab/>two<t:s t:c="3"/>three<t:note><t:note-citation>1</t:note-citation><t:note-body>'
        "<t:p>The note.</t:p></t:note-body></t:note> and<t:line-break/>on</t:p>"
        "<t:p>x<d:frame><d:text-box><t:p>Boxed</t:p></d:text-box></d:frame>y</t:p>"
        "<b:table><b:table-row><b:table-cell><t:p>a</t:p></b:table-cell><b:table-cell><t:p>b</t:p></b:table-cell>"
        "</b:table-row></b:table></o>"
    )}))  # fmt: skip
    assert one(tmp_path / "a.odt").text == "one\ttwo   three and\non\nxy\nBoxed\na\tb\nThe note.\n"


@pytest.mark.parametrize(
    "package",
    ["<p><manifest>{}</manifest></p>", "<p><manifest>{}</manifest><spine><itemref idref='zz'/></spine></p>",
     "<p><manifest>{}", "no xml", None],
)  # fmt: skip
def test_epub_without_a_spine_to_follow_keeps_its_chapters(tmp_path, package):
    chapter = "<html><body><p>{} " + PARAGRAPH + "</p></body></html>"
    items = "<item id='a' href='1.xhtml'/><item id='b' href='2.XHTML'/>"
    files = {"META-INF/container.xml": '<c xmlns="urn:x"><rootfile full-path="p.opf"/></c>'} if package else {}
    files |= {"p.opf": package.format(items)} if package else {}
    files |= {"1.XHTML": chapter.format("First"), "2.xhtml": chapter.format("Second")}
    (tmp_path / "a.epub").write_bytes(zipped(files))
    text = one(tmp_path / "a.epub").text
    assert 0 == text.index("First") < text.index("Second")


def test_alternatives_of_a_mail_are_read_once_and_its_other_parts_too(tmp_path):
    (tmp_path / "a.eml").write_bytes(
        b"Subject: \xcf\xf0\xe8\xe2\xe5\xf2 \xec\xe8\xf0\nContent-Type: multipart/mixed; boundary=o\n\n"
        b"--o\nContent-Type: multipart/alternative; boundary=i\n\n--i\nContent-Type: text/html\n\n<p>The message</p>\n"
        b"--i--\n--o\nContent-Type: message/rfc822\n\nContent-Type: multipart/alternative; boundary=j\n\n"
        b"--j\nContent-Type: text/html\n\n<p>forwarded in HTML</p>\n"
        b"--j\nContent-Type: text/plain; format=flowed\n\nforwarded \nplain\n-- \nsender\n--j--\n"
        b"--o\nContent-Type: text/plain\n\nfooter of the list\n--o--\n"
    )
    text = "Привет мир\n\nThe message\n\nforwarded plain\n-- \nsender\n\nfooter of the list\n"
    assert one(tmp_path / "a.eml").text == text
