"""The two files of a trained filter: arrays as safetensors, settings as JSON. Knows no filter."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from lmworks.core.errors import ArtifactError

ARRAYS = "model.safetensors"
Arrays = Mapping[str, NDArray[Any]]
_Model = TypeVar("_Model")


def save_trained(folder: Path, kind: str, arrays: Arrays, settings: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `KIND.json` into an existing folder."""
    from safetensors.numpy import save_file

    save_file(dict(arrays), folder / ARRAYS)
    (folder / f"{kind}.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_trained(folder: Path, kind: str, make: Callable[[Arrays, Mapping[str, Any]], _Model]) -> _Model:
    """What `make` makes of the arrays and settings that `save_trained` wrote.

    Raises:
        ArtifactError: they are not there or not whole.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        settings = json.loads((folder / f"{kind}.json").read_text(encoding="utf-8"))
        return make(load_file(folder / ARRAYS), settings)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder} holds no {kind} filter: {error}", f"Make one with `lmworks data train-filter --kind {kind}`"
        ) from None
