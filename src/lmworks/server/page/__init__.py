"""The chat page: static files of this package and the look of all pages, read once, under a strict content policy.

The page asks for nothing beyond this server. Knows no model.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response
from starlette.exceptions import HTTPException

FILES = {
    "index.html": "text/html",
    "look.css": "text/css",
    "style.css": "text/css",
    "app.js": "text/javascript",
    "turns.js": "text/javascript",
    "api.js": "text/javascript",
    "copy.js": "text/javascript",
    "markdown.js": "text/javascript",
    "settings.js": "text/javascript",
}
"""What may be asked for, with its media type."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

router = APIRouter()


@router.get("/", include_in_schema=False)
async def index() -> Response:
    """The page itself."""
    return _reply("index.html")


@router.get("/page/{name}", include_in_schema=False)
async def asset(name: str) -> Response:
    """One of the page's files."""
    if name not in FILES:
        raise HTTPException(404)
    return _reply(name)


def _reply(name: str) -> Response:
    return Response(_content(name), headers=HEADERS, media_type=FILES[name])


@cache
def _content(name: str) -> bytes:
    return files("lmworks.core" if name == "look.css" else __name__).joinpath(name).read_bytes()
