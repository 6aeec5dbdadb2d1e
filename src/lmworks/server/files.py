"""`/v1/files`: upload, list, read, delete. Knows no batch."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import FileResponse

from lmworks.core.errors import disk_errors, require
from lmworks.protocol.errors import InvalidRequestError
from lmworks.protocol.files import DeletedFile, FileList, FileObject
from lmworks.server.caller import caller_of
from lmworks.server.file_store import FileStore
from lmworks.server.openapi import described
from lmworks.server.replies import json_reply
from lmworks.server.state import state_of

MAX_FILE_BYTES = 200 * 2**20
"""OpenAI's bound of a batch's input."""
PIECE_BYTES = 2**20

router = APIRouter()
_UPLOAD = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": ["batch"]}},
    "required": ["file", "purpose"],
}
_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD}}}}


@router.post("/v1/files", **described(None, FileObject), openapi_extra=_BODY)
async def upload_file(request: Request) -> Response:
    """Store a file.

    Raises:
        InvalidRequestError: the form is not one with a file and a purpose, or too large (413).
    """
    require("multipart", "serve")
    _same_origin(request)
    owner = caller_of(request).salt
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InvalidRequestError("A file is sent as 'multipart/form-data'", "Send a form", status=415)
    try:
        form = await MultiPartParser(request.headers, _bounded(request), max_files=1, max_fields=8).parse()
    except (MultiPartException, ValueError, KeyError) as error:
        raise InvalidRequestError(f"The form cannot be read: {str(error)[:200]}", "Send a valid form") from None
    try:
        upload, purpose = form.get("file"), form.get("purpose")
        if not isinstance(upload, UploadFile):
            raise InvalidRequestError("Missing required parameter: 'file'", param="file")
        if purpose != "batch":
            raise InvalidRequestError("'purpose' must be 'batch'", "Send purpose=batch", param="purpose")
        stored = await _store(state_of(request).files, upload, owner)
    finally:
        await form.close()
    return json_reply(stored)


@router.get("/v1/files", **described(None, FileList))
async def list_files(request: Request) -> Response:
    """The client's files."""
    return json_reply(FileList(data=state_of(request).files.list(caller_of(request).salt)))


@router.get("/v1/files/{file_id}", **described(None, FileObject))
async def get_file(request: Request, file_id: str) -> Response:
    """One file; errors as in `FileStore.get`."""
    return json_reply(state_of(request).files.get(file_id, caller_of(request).salt))


@router.get("/v1/files/{file_id}/content", **described(None, None, media_type="application/octet-stream"))
async def get_content(request: Request, file_id: str) -> Response:
    """A file's bytes; errors as in `FileStore.get`."""
    files = state_of(request).files
    stored = files.get(file_id, caller_of(request).salt)
    return FileResponse(files.path(stored.id), media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}", **described(None, DeletedFile))
async def delete_file(request: Request, file_id: str) -> Response:
    """Forget a file; errors as in `FileStore.get`."""
    state_of(request).files.delete(file_id, caller_of(request).salt)
    return json_reply(DeletedFile(id=file_id))


async def _store(files: FileStore, upload: UploadFile, owner: str) -> FileObject:
    """Copy an upload to its place; errors as in `FileStore.add`."""
    handle, name = tempfile.mkstemp(dir=files.folder, prefix=".upload-")
    whole = Path(name)
    try:
        with disk_errors(whole), os.fdopen(handle, "wb") as target:
            while piece := await upload.read(PIECE_BYTES):
                await asyncio.to_thread(target.write, piece)
        return files.add(whole, owner, (upload.filename or "file")[:255], "batch")
    finally:
        whole.unlink(missing_ok=True)


async def _bounded(request: Request) -> AsyncGenerator[bytes, None]:
    """The body, as far as it may go."""
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_FILE_BYTES:
            raise InvalidRequestError(f"The file is larger than {MAX_FILE_BYTES} bytes", "Split it", status=413)
        yield piece


def _same_origin(request: Request) -> None:
    """Refuse forms from pages of other origins, which browsers send without asking first."""
    origin = request.headers.get("origin")
    allowed = state_of(request).config.cors_origins
    if origin is None or origin in allowed or "*" in allowed or urlsplit(origin).netloc == request.url.netloc:
        return
    raise InvalidRequestError(f"Pages of {origin[:80]!r} may not upload files", "Allow the origin", status=403)
