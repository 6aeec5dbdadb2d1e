"""Bodies of the routes that change what is served, with vLLM's names where it has them. Knows no engine."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from lmworks.protocol.wire import WireRequest, WireResponse


class AdminRequest(WireRequest):
    """What every such request may say."""

    model: str | None = None
    """Which of several served models; one alone need not be named."""


class LoadLoraRequest(AdminRequest):
    """An adapter folder under a name."""

    lora_name: Annotated[str, Field(min_length=1)]
    lora_path: Annotated[str, Field(min_length=1)]
    load_inplace: bool = False
    """Replace one that has this name."""


class UnloadLoraRequest(AdminRequest):
    """An adapter by its name."""

    lora_name: Annotated[str, Field(min_length=1)]


class WeightsRequest(AdminRequest):
    """A folder with weights of the same shape."""

    path: Annotated[str, Field(min_length=1)]
    version: str | None = None
    """What to call them; None leaves that to the engine."""


class VersionRequest(AdminRequest):
    """Weights that were loaded before; None is the version before the one that is served."""

    version: str | None = None


class AdminResponse(WireResponse):
    """What was done."""

    model: str
    result: Any = None
    """What the engine says, if anything."""
