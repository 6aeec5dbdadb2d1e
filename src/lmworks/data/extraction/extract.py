"""Readers of files that are one document each, by suffix: plain text here, the others in rooms of their own.

Knows no folders, no rows and no cleaning.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from lmworks.core.errors import require
from lmworks.data.extraction.code import LANGUAGES
from lmworks.data.extraction.encodings import decode_named
from lmworks.data.extraction.guard import GUARD
from lmworks.data.extraction.html import read_html
from lmworks.data.extraction.mail import read_mail
from lmworks.data.extraction.notebook import read_notebook
from lmworks.data.extraction.office import read_docx, read_epub, read_odt
from lmworks.data.extraction.pdf import read_pdf
from lmworks.data.extraction.result import Extracted, RowFields, known

TEXTS = (".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org")
PAGES = (".html", ".htm", ".xhtml")

READERS: dict[str, Callable[[bytes, RowFields, str], Extracted]] = {
    **dict.fromkeys(PAGES, lambda data, fields, declared: read_html(data, declared)),
    ".pdf": lambda data, fields, declared: read_pdf(data, fields.ocr),
    ".docx": lambda data, fields, declared: read_docx(data),
    ".odt": lambda data, fields, declared: read_odt(data),
    ".epub": lambda data, fields, declared: read_epub(data),
    ".eml": lambda data, fields, declared: read_mail(data),
}
"""Suffix to reader, for what only a guarded process should read: bytes, settings, and a declared encoding."""
_NEEDED = {".pdf": "pypdfium2", ".docx": "lxml", ".odt": "lxml"}
"""Asked for before a process is started; the others need trafilatura."""

_DECIDING = (
    "lxml", "pathspec", "phonenumbers", "py3langid", "pyarrow", "pypdfium2", "rapidocr", "spacy",
    "trafilatura",
)  # fmt: skip
"""Packages whose next version may give another text, language or finding."""

EXTRACTED = (*TEXTS, *READERS, ".ipynb", *LANGUAGES)
"""Suffixes of files that are one document each."""


def extract(suffix: str, data: bytes, fields: RowFields, declared: str = "") -> Extracted:
    """The text of a file.

    Args:
        suffix: one of `EXTRACTED`; any other is read as plain text.
        data: its bytes.
        fields: what its reading may cost.
        declared: a page's encoding, as a header told it.

    Raises:
        UnreadableError: there is no text in it; `reason` names why.
        MissingExtraError: its reader is not installed.
    """
    if suffix in READERS:
        require(_NEEDED.get(suffix, "trafilatura"), "data")
        if suffix == ".pdf" and fields.ocr:
            require("rapidocr", "ocr")
        return GUARD.read(suffix, data, fields, declared)
    if suffix == ".ipynb":
        return read_notebook(data)
    text, encoding = decode_named(data)
    return Extracted(text, known(encoding="" if encoding in ("utf-8", "utf-8-sig") else encoding))


def reader_versions() -> dict[str, str]:
    """What the outcome of reading and of the steps after it depends on beside our own code."""
    found = {}
    for package in _DECIDING:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
