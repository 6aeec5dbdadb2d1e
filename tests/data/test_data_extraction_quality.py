"""Main content of pages, and reading order, hyphens, ligatures, headers and footers of PDF pages."""

import pytest

from lmworks.data.extraction.html import all_text, read_html
from lmworks.data.extraction.pdf import read_pdf
from lmworks.data.extraction.pdf_layout import Line, running_text
from lmworks.data.extraction.result import UnreadableError

SENTENCES = [
    f"Sentence number {word} tells of rivers that carry water to the sea." for word in ["one", "two", "three", "four"]
]
CHINESE = [
    "今天天气很好，我们一起去公园散步。",
    "孩子们在湖边放风筝，老人坐在树下下棋。",
    "大家都很高兴，直到太阳下山才回家。",
]


def pdf(pages, size=10, turn="1 0 0 1 0 0", rotate=0):
    """Pages of `(x, y, text)` lines in Helvetica, shown in the order given, their paper and its view turned."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = ["<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>",
               "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]  # fmt: skip
    for i, lines in enumerate(pages):
        shown = (
            f"{turn} cm BT /F1 {size} Tf " + " ".join(f"1 0 0 1 {x} {y} Tm ({text}) Tj" for x, y, text in lines) + " ET"
        )
        objects += [
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 792 792]/Rotate {rotate}/Contents {5 + 2 * i} 0 R"
            "/Resources<</Font<</F1 3 0 R>>>>>>",
            f"<</Length {len(shown)}>>stream\n{shown}\nendstream",
        ]
    data, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj{content}\nendobj\n"
    count = len(objects) + 1
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    trailer = f"trailer<</Size {count}/Root 1 0 R>>\nstartxref\n{len(data)}\n%%EOF"
    return (data + f"xref\n0 {count}\n0000000000 65535 f \n{table}{trailer}").encode()


@pytest.mark.parametrize("in_turns", [True, False])
def test_columns_are_read_one_after_the_other(in_turns):
    left = [(72, 700 - 14 * i, f"left line {i} of the first column") for i in range(8)]
    right = [(320, 700 - 14 * i, f"right line {i} of the second one") for i in range(8)]
    lines = [line for pair in zip(left, right, strict=True) for line in pair] if in_turns else [*left, *right]
    heading = (
        72,
        740,
        "A heading that stands above both of the columns and reaches over the gutter of the page between",
    )
    found = read_pdf(pdf([[heading, *lines]])).text
    words = [f"left line {i}" for i in range(8)] + [f"right line {i}" for i in range(8)]
    assert [found.index(w) for w in words] == sorted(found.index(w) for w in words)
    assert found.startswith("A heading")


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("turn", ["1 0 0 1 0 0", "0 1 -1 0 792 0", "-1 0 0 -1 792 792", "0 -1 1 0 0 792"])
def test_turned_pages_read_as_upright_ones(turn, rotate):
    left = [(60, 700 - 14 * i, f"left line {i} of the first column") for i in range(8)]
    right = [(320, 700 - 14 * i, f"right line {i} of the second one") for i in range(8)]
    lines = [line for pair in zip(left, right, strict=True) for line in pair]
    junk = b"<html>" * 500
    assert read_pdf(junk + pdf([lines], turn=turn, rotate=rotate)).text == read_pdf(pdf([left + right])).text


def test_cells_of_a_table_stay_in_their_rows():
    lines = [
        (x, 700 - 14 * i, f"{name}{i}") for i in range(8) for x, name in ((72, "key"), (200, "value"), (330, "unit"))
    ]
    found = read_pdf(pdf([lines])).text.split()
    assert found[:6] == ["key0", "value0", "unit0", "key1", "value1", "unit1"]


def test_headers_footers_and_page_numbers_are_left_out():
    pages = [
        [(72, 760, "The Annual Report"), (500, 760, f"Chapter {i // 3}"),
         *((72, 700 - 14 * j, f"Body {i} line {j} with words of its own.") for j in range(6)),
         (300, 40, f"Page {i + 1} of 8")]
        for i in range(8)
    ]  # fmt: skip
    found = read_pdf(pdf(pages)).text
    assert "Annual" not in found
    assert "Page" not in found
    assert found.count("Body") == 48


def test_short_files_keep_every_line():
    found = read_pdf(pdf([[(72, 700, "Invoice"), (72, 680, "42")]])).text
    assert found.split() == ["Invoice", "42"]


def lines(*texts):
    return [Line(text, 72, 700 - 14 * i, 72 + 5 * len(text), 710 - 14 * i) for i, text in enumerate(texts)]


def test_hyphens_of_line_breaks_go_and_those_of_words_stay():
    first = "The committee met in the capital and decided on the con-"
    assert "the construction of" in running_text([lines(first, "struction of a bridge.")])
    compound = "It is a well-known rule, and everyone who knows of a well-"
    assert "a well-known rule of" in running_text([lines(compound, "known rule of it.")])
    assert "Jean-Paul" in running_text(
        [lines("The one who wrote this letter to all of them was Jean-", "Paul himself.")]
    )


def test_ligatures_are_letters_and_full_lines_go_on():
    text = running_text(
        [lines("The oﬃce of the ﬁrst ﬂoor is where all of the letters are", "kept for a year.", "", "New.")]
    )
    assert text == "The office of the first floor is where all of the letters are kept for a year.\nNew."


def test_chinese_lines_are_joined_without_spaces():
    page = [
        Line(t, 72, 700 - 14 * i, 72 + 10 * len(t), 710 - 14 * i) for i, t in enumerate(["今天" * 20, "天气很好。"])
    ]
    assert running_text([page]) == "今天" * 20 + "天气很好。"


def test_encrypted_and_empty_pdfs_are_named():
    with pytest.raises(UnreadableError, match="no text"):
        read_pdf(pdf([[]]))


@pytest.mark.slow
def test_scanned_pages_are_recognized():
    import pypdfium2

    page = pypdfium2.PdfDocument(pdf([[(72, 600, "Words on a scanned page")]], size=24))[0]
    picture = page.render(scale=1.5).to_pil().convert("RGB")
    from tempfile import TemporaryFile

    with TemporaryFile() as stream:
        picture.save(stream, format="PDF", resolution=108)
        stream.seek(0)
        scanned = stream.read()
    with pytest.raises(UnreadableError, match="1 of 1 pages are pictures only"):
        read_pdf(scanned)
    assert read_pdf(scanned, ocr=True).text.split() == ["Words", "on", "a", "scanned", "page"]


@pytest.mark.parametrize("texts", [SENTENCES, CHINESE])
def test_menus_go_and_the_article_stays(texts):
    links = "".join(f'<li><a href="/{i}">Menu entry {i}</a></li>' for i in range(30))
    page = f"""<html><head><title>A page</title><link rel="canonical" href="https://a.example/p">
      <meta property="article:published_time" content="2021-02-03"></head><body>
      <div class="navbar"><ul>{links}</ul></div><header>Site name</header>
      <main><h1>Heading</h1>{"".join(f"<p>{t}</p>" for t in texts * 3)}<pre>def f():\n    return 1</pre>
      <table><tr><td>cell one</td><td>cell two</td></tr></table></main>
      <aside>Related stories</aside><footer>Imprint <a rel="license" href="https://creativecommons.org/licenses/by/4.0/">
      CC BY</a></footer></body></html>"""
    found = read_html(page.encode())
    for text in (*texts, "Heading", "def f():\n    return 1", "cell one"):
        assert text in found.text
    for gone in ("Menu entry", "Site name", "Related", "Imprint"):
        assert gone not in found.text
    assert found.meta == {"title": "A page", "url": "https://a.example/p", "date": "2021-02-03",
                          "license": "https://creativecommons.org/licenses/by/4.0/"}  # fmt: skip


def test_a_declared_encoding_is_used():
    page = f'<html><head><meta charset="gb2312"></head><body><p>{CHINESE[0]}</p></body></html>'.encode("gb18030")
    assert CHINESE[0] in read_html(page).text


def test_deep_and_endless_pages_still_give_their_words():
    assert "core" in read_html(b"<div>" * 50_000 + b"core of it all" + b"</div>" * 50_000).text
    assert "core" in all_text("<nav>menu</nav>" + "<b>" * 100_000 + "core<script>no</script>")
    assert "no" not in all_text("core<script>no</script>").split()


def test_what_is_not_shown_is_left_out_and_cells_stand_in_rows():
    shown = "".join(f"<p>{text}</p>" for text in SENTENCES)
    page = (
        f"<p hidden>one</p><p style='color: red; display : none'>two</p>{shown}<table><tr><td>a<td>b<tr><td>c</table>"
    )
    found = read_html(page.encode()).text
    assert "one\n" not in found
    assert "two\n" not in found
    assert found.endswith("a\tb\n\nc")


def test_an_element_of_endless_attributes_takes_no_time():
    page = "<p " + " ".join(f"a{i}=1" for i in range(100_000)) + ">the words of it"
    assert read_html(page.encode()).text == "the words of it"


def test_lists_are_numbered_and_notes_and_headings_of_the_text_stay():
    shown = "".join(f"<p>{text}</p>" for text in SENTENCES * 2)
    page = (
        f"<body><header>Site</header><aside>Related</aside><article><header><h1>Heading</h1></header>{shown}"
        "<ol start='3'><li>third<ol><li>inner</ol><li>fourth</ol><aside class='footnote' role='note'>A note.</aside>"
        "</article></body>"
    )
    found = read_html(page.encode()).text
    assert found.startswith("Heading\n")
    assert [line for line in found.splitlines() if line[:2] in ("1.", "3.", "4.")] == [
        "3. third",
        "1. inner",
        "4. fourth",
    ]
    assert found.endswith("A note.")
