"""Manuals as text: reStructuredText, troff, and the pages that readers make of them."""

import gzip
import io
import random
import time

import pytest

from lmworks.data.acquisition import manual_page, manuals, restructured_text
from lmworks.data.acquisition.wrapped_lines import unwrapped

RST = """\
.. SPDX-License-Identifier: MIT
.. include:: ../disclaimer.rst

:Original: Documentation/process/x.rst
:Translator:
 - Somebody <somebody@example.org>

.. _anchor:

=======
 A title
=======

:Kept: no, still in front

First line of a *wrapped*
paragraph with :c:func:`call()`, ``**literal**`` and `a link <https://x.org>`_, see [1]_ and
`another`_ or :ref:`the chapter <anchor>`, :class:`~a.b.Name`, :mod:`!os`, |brand| and C\\ ++.

.. |brand| replace:: The *Brand*

中文的一行
和下一行 English
完。

- an item that goes
  on
- another::

    kept   as *it* is

  and more

term
  Its definition
  goes on.

.. note:: Take care
   of *this*.

.. toctree::
   :maxdepth: 2

   hidden

.. code-block:: c
   :emphasize-lines: 1

   int *a;

   int b;

.. function:: f(a,
              b)
   :noindex:

   Does it.

   .. versionadded:: 3.2
      By somebody.

.. a comment that
   goes on

..

Not a comment.

>>> f(*a*)
3

===== =======
Name  Meaning
===== =======
``a`` first
===== =======

+-----+----+
| one | 2  |
+-----+----+

Sub
---

.. [1] A footnote
   on two lines.

----

The end.
"""

TEXT = """\
A title

First line of a wrapped paragraph with call(), **literal** and a link, see [1] and another or the chapter, Name, os, The Brand and C++.

中文的一行和下一行 English 完。

- an item that goes on
- another:

    kept   as *it* is

  and more

term
  Its definition goes on.

Take care of this.

int *a;

int b;

f(a,
b)

Does it.

New in version 3.2
By somebody.

Not a comment.

>>> f(*a*)
3

Name  Meaning
a first

one | 2

Sub

[1] A footnote on two lines.

The end."""  # noqa: E501 - a paragraph is one line


def test_restructured_text_as_its_reader_sees_it():
    assert restructured_text.plain_text(RST) == TEXT


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("char *p and char *q", "char *p and char *q"),
        ("a ** b ** c", "a ** b ** c"),
        ("2*3*4", "2*3*4"),
        ("**bold** and *slanted*, *both words*.", "bold and slanted, both words."),
        ("an ``unclosed literal", "an ``unclosed literal"),
        ("``a`b``", "a`b"),
        (":ref:`x`", "x"),
        ("name_ and name__ but a_b and _c", "name and name but a_b and _c"),
        ("say::", "say:"),
        ("say ::", "say"),
        ("::\n\n   code", "   code"),
        ("..\n   a comment", ""),
        (".. image:: a.png\n\ntext", "text"),
        (".. unknown:: word\n\n   text", "word\n\ntext"),
        ("Title\n^^^^^\n\ntext", "Title\n\ntext"),
        ("| a verse\n| another", "a verse\nanother"),
        ("", ""),
        ("\n\n", ""),
        (".. note::", ""),
        (
            ".. flat-table:: A *caption*\n    :header-rows: 1\n\n    * .. row 1\n\n      - Name\n\n"
            "      - :cspan:`1` Meaning\n    * - ``a``\n      - the first\n        of all\n      -\n\nText",
            "A caption\nName | Meaning\na | the first of all\n\nText",
        ),
        ("a\0b \0 0\0", "ab  0"),
    ],
)
def test_marks_are_taken_where_they_are_marks(source, text):
    assert restructured_text.plain_text(source) == text


TROFF = r""".\" A comment
.TH NAME 1 "2020" "Some" "Manual"
.SH "名称"
foo \- 做\fB某\fP事
.SH 选项
.TP
.BR \-a ", " \-\-all
显示
全部文件
.IP \(bu 2
one \(lqquoted\(rq item\e
.IP "\fItag\fR" 4
two words
.nf
kept  as
   it is
.fi
.de XX
hidden
..
.if t .ig
.ie n \{\
hidden
.\}
.el hidden
.TS
l l.
hidden
.TE
.PP
Text\c
(of) three\&.\" away
 broken before the space
.Sh NAME2
.Nm tool
.Op Fl v Ar file
.Xr ls 1
.It Fl q
quiet
'br
\*(lqa\*(rq \s-1NASA\s0 \[u2014] \(co 1\h'1i'2
"""

PAGE = """\
名称

foo - 做某事

选项

-a, --all
显示全部文件
• one “quoted” item\\
tag
two words
kept  as
   it is

Text(of) three.
broken before the space

NAME2

tool -v file ls 1
-q quiet
“a” NASA — © 12"""


def test_a_manual_page_as_its_reader_sees_it():
    assert manual_page.plain_text(TROFF) == PAGE


def test_lines_meet_as_their_language_writes():
    assert unwrapped(["  一句，", "下一句", "English", "words", "和", ""]) == "一句，下一句 English words 和"


@pytest.mark.parametrize("clean", [restructured_text.plain_text, manual_page.plain_text])
def test_any_text_is_read_in_time_that_grows_with_it(clean):
    rng = random.Random(0)
    pieces = [*"`*|\\.'\"_\t\0<> \n", "..", "::", "``", "**", ":a:`", "+--+", "====", "\\f", "\\(", "\\*[", ".TP"]
    pieces += [".de x", ".if n \\{", "中", "word ", "[1]_", "- "]
    for _ in range(200):
        clean("".join(rng.choices(pieces, k=rng.randrange(100))))
    begin = time.process_time()
    for piece in pieces:
        clean(piece * 10_000)
        clean(f"{piece}x " * 3_000)
    assert time.process_time() - begin < 15


def rows(reader, files):
    return list(reader((name, io.BytesIO(data.encode() if isinstance(data, str) else data)) for name, data in files))


def test_kernel_pages_are_told_apart_and_keep_their_licence():
    base = "usr/share/doc/linux-doc-6.1/html/_sources/"
    files = [
        (base + "index.rst.txt", ".. SPDX-License-Identifier: GFDL-1.1-or-later\n\nEnglish."),
        (base + "empty.rst.txt", ".. toctree::\n\n   index\n"),
        (base + "translations/zh_CN/index.rst.txt", "中文。"),
    ]
    english = {"text": "English.", "source": "index", "license": "GFDL-1.1-or-later"}
    assert rows(manuals.kernel_docs, files) == [english]
    assert rows(manuals.kernel_docs_zh, files) == [{"text": "中文。", "source": "translations/zh_CN/index"}]
    assert [row["source"] for row in rows(manuals.python_docs, files[:1])] == ["index"]


def test_manual_pages_lose_the_note_of_their_translators():
    page = '.SH 名称\nls\n.SH "跋"\n本页面中文版由中文 man 手册页计划提供。\n'
    files = [(f"usr/share/man/zh_CN/{name}.gz", gzip.compress(page.encode())) for name in ("man1/ls.1", "man1/kill.1")]
    files.append(("usr/share/man/zh_CN/man3/so.3.gz", gzip.compress(b".so man3/other.3\n")))
    assert rows(manuals.manual_pages_zh, files) == [
        {"text": "名称\n\nls", "source": "man1/ls.1"},
        {"text": "名称\n\nls", "source": "man1/kill.1", "license": "GPL-2.0-only"},
    ]


def test_help_pages_leave_out_what_nobody_translated():
    page = (
        "<body><p>menu</p><h1 id='hd_1'>标题 <a>甲</a></h1><p id='par_2'>This was never translated by anybody.</p>"
        "<p id='par_3'>Calc</p><p id='par_4'> </p><pre>a = 1\n  b = 2</pre></body>"
    )
    where = "usr/share/libreoffice/help/{}/text/scalc/a.html"
    (row,) = rows(manuals.libreoffice_help, [(where.format("zh-CN"), page)])
    assert row == {"text": "标题 甲\n\nCalc\n\na = 1\n  b = 2", "source": "scalc/a"}
    (row,) = rows(manuals.libreoffice_help, [(where.format("en-US"), page)])
    assert "never translated" in row["text"]


def test_a_pair_comes_once_and_only_where_both_languages_have_it():
    where = "usr/share/libreoffice/help/{}/text/{}.html"
    english = "<p id='par_1'>One</p><p id='par_2'>Two</p><p id='par_3'>Three</p><p id='par_4'>五</p>"
    chinese = "<p id='par_1'>一</p><p id='par_2'>Two</p><p id='par_4'>五</p><p id='par_9'>九</p>"
    files = [(where.format("en-US", name), english) for name in "ab"]
    files += [(where.format("zh-CN", name), chinese) for name in "abc"]
    (row,) = rows(manuals.libreoffice_pairs, files)
    assert row["source"] == "a#par_1"
    assert {row["messages"][0]["content"].rpartition("\n\n")[2], row["messages"][1]["content"]} == {"One", "一"}


def test_chapters_of_the_reference_come_without_its_index():
    page = "<html><body><h1>Chapter 1</h1><p>Some words about packages and how they are kept.</p></body></html>"
    files = [(f"usr/share/debian-reference/{name}.en.html", page) for name in ("ch01", "index")]
    assert [row["source"] for row in rows(manuals.debian_reference, files)] == ["ch01.en"]
