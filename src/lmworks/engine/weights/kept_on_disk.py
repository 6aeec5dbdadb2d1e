"""Weights kept on disk in the form in which they are served: read in a fraction of a second, or used where they lie.

A file belongs to what it was made from and how: the content of the model's files, the rounding, the type, the
processor's level, and the code that packs. Contents are hashed once and then known by path, size and time. Files lie
in `weights/` of the cache folder; beyond `MOST_BYTES` the least recently used are removed, which whoever maps them
does not notice. A file that cannot be used or written costs a line in the log, never the model. Knows no request.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from hashlib import sha256
from inspect import getfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmworks import __version__
from lmworks.core.errors import CheckpointError
from lmworks.core.lineage import sha256 as file_hash
from lmworks.engine.config import Quantization, WeightsOnDisk
from lmworks.engine.execution import packed_linear
from lmworks.engine.execution.packed_linear import PackedLinear
from lmworks.engine.weights.packed_file import map_packed, write_packed
from lmworks.kernels import packed_matmul
from lmworks.kernels.native.library import cache_folder, library
from lmworks.kernels.native.memory import release_rest, weight_memory
from lmworks.kernels.packed_matmul import PackedWeight, WeightKind
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.hub.safetensors_io import weight_files
from lmworks.models.transformer import Transformer
from lmworks.nn import quantized_grid
from lmworks.nn.quantized import QuantizedMatrix

MOST_BYTES = 32 * 2**30
PACKED, BIAS = "packed", "packed_bias"
BESIDE = ("config.json", "generation_config.json")

log = logging.getLogger(__name__)


def kept_weights(
    path: Path, quantization: Quantization, dtype: torch.dtype | None, on_disk: WeightsOnDisk,
    make: Callable[[], Transformer],
) -> Transformer:  # fmt: skip
    """A model as `make` makes it, from the file that was written when it was first made.

    Args:
        path: a model folder or a GGUF file.
        quantization: with which `make` makes it, as the following.
        dtype: None is the fastest.
        on_disk: `cached` reads the file into memory, `mapped` leaves the weights in it.
        make: loads and packs.
    """
    folder = cache_folder() / "weights"
    try:
        file = folder / f"{_key(folder, path, quantization, dtype)}.packed"
    except OSError as error:
        log.warning("weights are not kept on disk: %s", error)
        return make()
    found = _read(file, on_disk)
    if found is not None:
        return found
    made = make()
    try:
        _write(file, made)
    except OSError as error:
        log.warning("weights are not kept on disk: %s", error)
        return made
    return made if on_disk == "cached" else _read(file, on_disk) or made


def _read(file: Path, on_disk: WeightsOnDisk) -> Transformer | None:
    """The model of a file; None where it must be made."""
    try:
        about, tensors = map_packed(file)
        os.utime(file)
    except FileNotFoundError:
        return None
    except (OSError, CheckpointError) as error:
        log.warning("packed weights are made anew: %s", error)
        return None
    if on_disk == "cached":
        tensors = {name: _copied(tensor) for name, tensor in tensors.items()}
        release_rest()
    with torch.device("meta"):
        model = build_model(ModelConfig.parse(about["config"]))
    for name, values in about["linears"].items():
        packed, bias = tensors.pop(f"{name}.{PACKED}"), tensors.pop(f"{name}.{BIAS}", None)
        kind, out_features, in_features, group_size = values["weight"]
        weight = PackedWeight(WeightKind(kind), out_features, in_features, group_size, packed, bias)
        dtype = getattr(torch, values["dtype"])
        model.set_submodule(
            name, PackedLinear.of(weight, values["quantization"], dtype, keeps_grid=values["keeps_grid"])
        )
    model.load_state_dict(tensors, strict=True, assign=True)
    if not isinstance(model.lm_head, PackedLinear):
        model.tie_weights()
    log.info("weights: %s", file)
    return model.eval()


def _write(file: Path, model: Transformer) -> None:
    """Write a model's file, unless it has parts that such files do not hold.

    Raises:
        OSError: it cannot be written.
    """
    state = model.state_dict()
    if any(isinstance(module, QuantizedMatrix) for module in model.modules()) or len(state) != len(
        [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    ):
        log.info("weights are not kept on disk: the model has matrices on a grid that are not packed")
        return
    if model.tied:
        state.pop("lm_head.weight", None)
    linears: dict[str, Any] = {}
    tensors: dict[str, Tensor] = dict(state)
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            weight = module.weight
            linears[name] = {
                "weight": [int(weight.kind), weight.out_features, weight.in_features, weight.group_size],
                "quantization": module.quantization,
                "dtype": str(module.dtype).removeprefix("torch."),
                "keeps_grid": module.keeps_grid,
            }
            tensors[f"{name}.{PACKED}"] = weight.packed
            if weight.bias is not None:
                tensors[f"{name}.{BIAS}"] = weight.bias
    _make_room(file.parent, sum(tensor.nbytes for tensor in tensors.values()))
    write_packed(file, {"config": model.config.to_dict(), "linears": linears}, tensors)


def _copied(tensor: Tensor) -> Tensor:
    """In memory of its own, on large pages."""
    flat = tensor.flatten().view(torch.uint8)
    return weight_memory(len(flat)).copy_(flat).view(tensor.dtype).view(tensor.shape)


def _make_room(folder: Path, size: int) -> None:
    """Remove the least recently used files until one of that size fits.

    Raises:
        OSError: it would fill the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = sorted(((file.stat().st_mtime, file.stat().st_size, file) for file in folder.glob("*.packed")), reverse=True)
    total = size
    for _, bytes_of, file in kept:
        total += bytes_of
        if total > MOST_BYTES:
            file.unlink(missing_ok=True)
    disk = os.statvfs(folder)
    if size > disk.f_bavail * disk.f_frsize:
        raise OSError(f"{size / 2**30:.2f} GiB do not fit on the disk of {folder}")


def _key(folder: Path, path: Path, quantization: Quantization, dtype: torch.dtype | None) -> str:
    """Name of a file: what it is made from, and all that decides how."""
    native = library()
    assert native is not None, "weights are packed natively"
    code = [Path(getfile(module)).read_bytes() for module in (packed_linear, packed_matmul, quantized_grid)]
    made = sha256(b"".join(code)).hexdigest()
    how = (__version__, made, Path(native._name).name, quantization, str(dtype))
    return sha256(repr((_content(folder, path), how)).encode()).hexdigest()[:32]


def _content(folder: Path, path: Path) -> str:
    """Hash of a model's files, computed once for each state of them."""
    files = [path] if path.is_file() else [*weight_files(path), *(path / n for n in BESIDE if (path / n).is_file())]
    states = [(str(file.resolve()), *_state(file)) for file in files]
    known = folder / f"content-{sha256(repr(states).encode()).hexdigest()[:32]}"
    try:
        return known.read_text(encoding="ascii")
    except FileNotFoundError:
        pass
    content = sha256(repr([(file.name, file_hash(file)) for file in files]).encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{known.name}-{os.getpid()}"
    aside.write_text(content, encoding="ascii")
    aside.replace(known)
    return content


def _state(file: Path) -> Iterable[int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino
