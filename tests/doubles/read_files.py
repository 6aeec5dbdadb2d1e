"""Reading test files as the stage does, and packing them."""

import io
import zipfile

from lmworks.core.generation import Document
from lmworks.data.extraction.sources import Rejection, RowFields, read_documents


def read(path, **fields):
    items = list(read_documents(path, RowFields(**fields)))
    return [i for i in items if isinstance(i, Document)], [i for i in items if isinstance(i, Rejection)]


def one(path, **fields):
    documents, rejections = read(path, **fields)
    assert rejections == []
    assert len(documents) == 1
    return documents[0]


def zipped(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()
