"""A file of tensors that can be used where they lie: each begins on a cache line, and the file is mapped, not read.

Written aside, flushed and renamed, so that what carries the name is whole; two processes may write the same file at
once. The header is hashed and names the file's length, so that a damaged or cut file is found before it is used.

    8 bytes    LMWPACK1
    8 bytes    length of the header, little endian
    32 bytes   its SHA-256
    header     JSON: {"size": of the file, "about": anything, "tensors": {name: [type, shape, place]}}
    tensors    each at a multiple of 64 bytes

Knows no model.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmworks.core.errors import CheckpointError

MAGIC = b"LMWPACK1"
PRELUDE = len(MAGIC) + 8 + 32
ALIGNMENT = 64


def write_packed(path: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file.

    Args:
        path: it is replaced; its folder is made.
        about: JSON.
        tensors: on the CPU, contiguous.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    # Places are relative to the first tensor, for the header's length depends on them.
    places: dict[str, tuple[str, list[int], int]] = {}
    end = 0
    for name, tensor in tensors.items():
        places[name] = str(tensor.dtype).removeprefix("torch."), list(tensor.shape), end
        end = _rounded(end + tensor.nbytes)
    header = json.dumps({"size": end, "about": about, "tensors": places}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(MAGIC + len(header).to_bytes(8, "little") + sha256(header).digest() + header)
            file.write(bytes(_rounded(file.tell()) - file.tell()))
            for tensor in tensors.values():
                file.write(tensor.detach().flatten().view(torch.uint8).numpy().data)
                file.write(bytes(_rounded(file.tell()) - file.tell()))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def map_packed(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file holds.

    Returns:
        What was said about the tensors; the tensors, whose memory is the file's. Pages are shared with whoever else
        maps it and may be dropped and read again by the system; one that is written to becomes this process's own.

    Raises:
        OSError: there is no such file.
        CheckpointError: it is not whole.
    """
    with path.open("rb") as file:
        prelude = file.read(PRELUDE)
        length = int.from_bytes(prelude[8:16], "little")
        whole = os.fstat(file.fileno()).st_size
        header = file.read(length) if len(prelude) == PRELUDE and length <= whole else b""
        if prelude[:8] != MAGIC or sha256(header).digest() != prelude[16:]:
            raise CheckpointError(f"{path} is damaged", "Remove it")
        values = json.loads(header)
        begin = _rounded(PRELUDE + length)
        if begin + values["size"] != whole:
            raise CheckpointError(f"{path} was cut short", "Remove it")
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensors = {}
    for name, (dtype, shape, place) in values["tensors"].items():
        kind: torch.dtype = getattr(torch, dtype)
        count = torch.Size(shape).numel()
        flat = torch.frombuffer(memory, dtype=kind, count=count, offset=begin + place) if count else torch.empty(0)
        tensors[name] = flat.to(kind).view(shape)
    return values["about"], tensors


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
