"""What machines ask a server: does it live, is it ready, what does it run, how busy is it. Knows no generation.

Load balancers may ask for the head alone.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from lmworks import __version__
from lmworks.core.errors import EngineUnavailableError
from lmworks.server.metrics import CONTENT_TYPE
from lmworks.server.openapi import described
from lmworks.server.state import state_of

router = APIRouter()


@router.head("/live", include_in_schema=False)
@router.get("/live")
async def live() -> dict[str, str]:
    """The process answers, whatever its engines do."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """Every engine serves and the server does not drain: send requests here.

    Raises:
        EngineUnavailableError: not so (503).
    """
    if state_of(request).turnstile.draining:
        raise EngineUnavailableError("the server is shutting down", "Use another server")
    return await health(request)


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> dict[str, str]:
    """Every engine serves.

    Raises:
        EngineUnavailableError: one is being loaded, is started again, or has failed (503).
    """
    states = {model.name: model.llm.state for model in state_of(request).models.values()}
    silent = [f"{name} is {state}" for name, state in states.items() if state != "ready"]
    if silent:
        raise EngineUnavailableError(f"not every engine serves: {', '.join(silent)}", "Try again later")
    return {"status": "ok"}


@router.get("/version")
async def version() -> dict[str, str]:
    """Of lmworks."""
    return {"version": __version__}


@router.get("/load")
async def load(request: Request) -> dict[str, int]:
    """Requests that are being answered."""
    return {"server_load": state_of(request).turnstile.inside}


@router.get("/metrics", **described(None, None, media_type="text/plain"))
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(state_of(request).metrics.render(), media_type=CONTENT_TYPE)
