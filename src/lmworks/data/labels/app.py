"""The page on which people compare answers, over HTTP on this machine. Knows no file beyond its own.

| route | does |
|---|---|
| `GET /`, `GET /page/{name}` | the page |
| `GET /api/study` | title, consent text and its version |
| `POST /api/consent` `{annotator, version}` | records consent |
| `POST /api/withdraw` `{annotator}` | takes it back |
| `POST /api/items` `{annotator, at?}` | an item of the annotator's order, blind: the first open one, or number `at` |
| `POST /api/labels` `{annotator, item, choice, note?}` | records a choice: `left`, `right` or `tie` |

Mistakes are answered 400, without consent 403, as `{"error": …}`. A page of another site can neither read nor post
here: hosts are checked by name, and posts must be JSON, which needs a permission that is never given.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast, get_args

from lmworks.core.errors import DataError, require
from lmworks.data.labels.study import Choice, Study
from lmworks.data.rows.turns import write_turns
from lmworks.data.rows.values import Content

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

FILES = {"index.html": "text/html", "look.css": "text/css", "style.css": "text/css", "label.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MAX_BODY = 1 << 16
"""Bytes of a request."""
Answer = Callable[[Study, Mapping[str, Any]], dict[str, Any]]


def label_app(study: Study, hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")) -> Starlette:
    """The application.

    Args:
        study: which labels are collected.
        hosts: names under which the page may be asked for; `*` for any.

    Raises:
        MissingExtraError: the extra `serve` is not installed.
    """
    require("starlette", "serve")
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in FILES:
            return JSONResponse({"error": "no such file"}, 404)
        return Response(_content(name), headers=HEADERS, media_type=FILES[name])

    async def told(request: Request) -> Response:
        about = {"consent": study.consent, "version": study.version, "items": len(study.items)}
        return JSONResponse(about, headers=HEADERS)

    def route(path: str, answer: Answer, *, consent: bool = True) -> Route:
        async def handle(request: Request) -> Response:
            try:
                given = await _body(request)
                if consent and not study.agreed(given["annotator"]):
                    return JSONResponse({"error": "agree to the consent text first"}, 403)
                # A label is synced to the disk before it is answered, off the loop that serves the others.
                return JSONResponse(await asyncio.to_thread(answer, study, given), headers=HEADERS)
            except DataError as error:
                return JSONResponse({"error": str(error)}, 400)

        endpoint: Callable[[Request], Awaitable[Response]] = handle
        return Route(path, endpoint, methods=["POST"])

    return Starlette(
        routes=[
            Route("/", page), Route("/page/{name}", page), Route("/api/study", told),
            route("/api/consent", _consent, consent=False), route("/api/withdraw", _withdraw, consent=False),
            route("/api/items", _item), route("/api/labels", _label),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
    )  # fmt: skip


@cache
def _content(name: str) -> bytes:
    return files("lmworks.core" if name == "look.css" else "lmworks.data.labels.page").joinpath(name).read_bytes()


async def _body(request: Request) -> dict[str, Any]:
    """The fields of a request, with the annotator's name among them."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise DataError("the request is not application/json", "Send JSON")
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY:
            raise DataError(f"the request has more than {MAX_BODY} bytes", "Shorten the note")
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict) or not isinstance(given.get("annotator"), str):
        raise DataError("the request has no 'annotator'", "Send an object with it")
    return given


def _text(given: Mapping[str, Any], field: str, default: str | None = None) -> str:
    value = given.get(field, default)
    if not isinstance(value, str):
        raise DataError(f"{field!r} is {value!r}, not a text", "Send a text")
    return value


def _consent(study: Study, given: Mapping[str, Any]) -> dict[str, Any]:
    study.agree(given["annotator"], _text(given, "version"))
    return {"done": True}


def _withdraw(study: Study, given: Mapping[str, Any]) -> dict[str, Any]:
    study.withdraw(given["annotator"])
    return {"done": True}


def _item(study: Study, given: Mapping[str, Any]) -> dict[str, Any]:
    annotator, at = given["annotator"], given.get("at")
    order, labels = study.order_of(annotator), study.labels_of(annotator)
    if at is None:
        at = next((number for number, item in enumerate(order) if item not in labels), None)
    elif not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < len(order):
        raise DataError(f"there is no item number {at!r}", f"Ask for 0 to {len(order) - 1}")
    progress = {"labeled": len(labels), "items": len(order)}
    if at is None:
        return {"item": None, **progress}
    item = study.items[order[at]]
    first_left = study.left(annotator, item.id) == "first"
    left, right = item.answers if first_left else item.answers[::-1]
    before: dict[str, Any] = {"choice": None, "note": ""}
    if (label := labels.get(item.id)) is not None:
        side = "left" if label.verdict == label.left else "right"
        before = {"choice": "tie" if label.verdict == "tie" else side, "note": label.note}
    prompt = item.row.prompt
    assert prompt is not None, "items have explicit prompts"
    return {"item": item.id, "at": at, "prompt": _shown(prompt), "left": _shown(left), "right": _shown(right),
            **before, **progress}  # fmt: skip


def _label(study: Study, given: Mapping[str, Any]) -> dict[str, Any]:
    choice = _text(given, "choice")
    if choice not in get_args(Choice):
        raise DataError(f"the choice {choice!r} is none", f"Choose one of {', '.join(get_args(Choice))}")
    study.label(given["annotator"], _text(given, "item"), cast("Choice", choice), _text(given, "note", ""))
    return {"done": True}


def _shown(content: Content) -> list[dict[str, str]]:
    """Turns as the page shows them: who speaks, and what; calls of tools as JSON."""
    if isinstance(content, str):
        return [{"role": "", "text": content}]
    return [
        {
            "role": turn["role"],
            "text": turn["content"]
            + "".join("\n" + json.dumps(call, ensure_ascii=False) for call in turn.get("tool_calls", [])),
        }
        for turn in write_turns(content)
    ]
