"""Weights in safetensors files, one or sharded with an index. Knows no family and no configuration.

Pickled checkpoints (`.bin`, `.pt`) are refused: reading one runs whatever code it holds.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lmworks.core.errors import CheckpointError, disk_errors
from lmworks.models.hub.rules import Shape

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9
"""Above this the weights are written as several files, as the ecosystem's tools do."""


class SafetensorsSource:
    """The weights of a model folder, read one tensor at a time.

    Args:
        folder: holds `model.safetensors`, or the index and its shards.

    Raises:
        CheckpointError: no weights, pickled weights only, a damaged file, or an index that does not fit.
    """

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.files = weight_files(folder)
        self._where: dict[str, Any] = {}
        self._shapes: dict[str, Shape] = {}
        holders: dict[str, str] = {}
        for file in self.files:
            reader = _open(file)
            for name in reader.keys():  # noqa: SIM118 - not a mapping
                if name in holders:
                    raise CheckpointError(
                        f"{folder} holds tensor {name!r} twice, in {holders[name]} and {file.name}",
                        "Restore the original files",
                    )
                holders[name] = file.name
                self._where[name] = reader
                self._shapes[name] = tuple(reader.get_slice(name).get_shape())
        for name, shard in _index(folder).items():
            if holders.get(name) != shard:
                raise CheckpointError(
                    f"{folder / INDEX} places {name!r} in {shard}, which lacks it", "Restore the files"
                )

    def shapes(self) -> Mapping[str, Shape]:
        """See `TensorSource`."""
        return self._shapes

    def tensor(self, name: str) -> Tensor:
        """See `TensorSource`."""
        read: Tensor = self._where[name].get_tensor(name)
        return read.clone()  # the reader hands out mapped pages, which would die with the file


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder.

    Raises:
        CheckpointError: there are none, or the index names files outside the folder or absent ones.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if os.path.lexists(folder / WEIGHTS):
        raise CheckpointError(f"{folder / WEIGHTS} is a broken link or no file", "Restore the file")
    names = sorted(set(_index(folder).values()))
    for name in names:
        # Links are fine (download caches are made of them), paths that lead elsewhere are not.
        too_long = len(name.encode("utf-8", "replace")) > 255
        if Path(name).name != name or name in (".", "..") or "\\" in name or too_long:
            raise CheckpointError(
                f"{folder / INDEX} names the shard {name[:100]!r}, which is not a plain file name",
                "Do not trust this folder",
            )
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} lacks the shard {name!r} that its index names", "Download the missing file"
            )
    if names:
        return [folder / name for name in names]
    pickled = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickled:
        raise CheckpointError(
            f"{folder} has its weights only as pickles ({', '.join(pickled[:3])}); reading one runs the code in it",
            "Get the model's safetensors files or, where you trust their origin, convert them once: "
            "transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)",
        )
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    beside = f", only {', '.join(others[:3])}" if others else ""
    raise CheckpointError(
        f"{folder} holds no {WEIGHTS} and no {INDEX}{beside}", "Give the path of a complete model folder"
    )


def write_safetensors(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors as one file, or as shards with an index when they exceed `MAX_SHARD_BYTES`.

    Only the elements of each tensor are written, never the larger buffer it may be a view of.
    """
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in state.items():
        if filled and filled + tensor.nbytes > MAX_SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    single = len(shards) == 1
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = WEIGHTS if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        index |= dict.fromkeys(shard, file)
        with disk_errors(folder / file):
            _save({n: _owned(t) for n, t in shard.items()}, folder / file)
    if not single:
        total = {"total_size": sum(t.nbytes for t in state.values())}
        (folder / INDEX).write_text(
            json.dumps({"metadata": total, "weight_map": index}, indent=2) + "\n", encoding="utf-8"
        )


def _save(state: dict[str, Tensor], file: Path) -> None:
    try:
        save_file(state, file, metadata={"format": "pt"})
    except SafetensorError as error:  # it tells the system's error number in its text only
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number.group(1))
        raise OSError(code, os.strerror(code)) from error


def _owned(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().to("cpu").contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def _open(file: Path) -> Any:
    try:
        reader: Any = safe_open(file, framework="pt")
        with file.open("rb") as start:  # the library has checked the length, and lets the last of equal names win
            json.loads(start.read(int.from_bytes(start.read(8), "little")), object_pairs_hook=_without_repeats)
        return reader.__enter__()
    except RuntimeError as error:  # of the system, which counts mapped files against memory
        size = file.stat().st_size / 2**30
        raise CheckpointError(
            f"{file} holds {size:.1f} GiB, more than this machine has room for ({error})",
            "Free memory, or use a smaller or quantized model",
        ) from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged or truncated: {error}", "Download or make the file again") from None


def _index(folder: Path) -> dict[str, str]:
    """Tensor name to shard; empty when there is no index or a single file takes precedence."""
    file = folder / INDEX
    if (folder / WEIGHTS).is_file() or not file.is_file():
        return {}
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)["weight_map"]
        return {str(n): str(f) for n, f in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged: {error!r}", "Download the file again") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused where it names something twice: readers differ about which one counts."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is named twice")
    return values
