"""A function on several processes of this machine, for proofs and tests: gloo, one thread each, results collected.

A launcher for real runs is torchrun. Knows nothing of what is run.
"""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lmworks.core.errors import ParallelError

_OWN = __name__.partition(".")[0] + "."
_SLOW_TO_IMPORT = (
    "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.distributed.checkpoint",
    "torch.distributed.pipelining",
)  # fmt: skip
"""Imported once for all processes, as is what the first caller has imported of this package."""


def run_processes(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """Call `function(*args)` on every rank of a gloo process group.

    Args:
        function: importable by name; builds its mesh with `make_mesh`.
        world_size: processes.
        args: the same for each, picklable.
        timeout: seconds until all are ended.

    Returns:
        What each rank returned, in the order of ranks.

    Raises:
        ParallelError: a rank failed, with its traceback, or did not answer in time; the others are ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*sorted(name for name in sys.modules if name.startswith(_OWN)), *_SLOW_TO_IMPORT])
    with tempfile.TemporaryDirectory() as folder:
        readers, processes = [], []
        for rank in range(world_size):
            reader, writer = context.Pipe(duplex=False)
            place = (str(Path(folder) / "store"), rank, world_size, timeout)
            process = context.Process(target=_run, args=(writer, place, function, args), daemon=True)
            process.start()
            writer.close()
            readers.append(reader)
            processes.append(process)
        try:
            return _collect(readers, timeout)
        finally:
            for process in processes:
                process.join(5 if process.exitcode is None and all(r.closed for r in readers) else 0)
                if process.exitcode is None:
                    process.kill()
                    process.join()


def _collect(readers: list[Connection], timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    ranks = {id(reader): rank for rank, reader in enumerate(readers)}
    waiting = list(readers)
    while waiting:
        ready = wait(waiting, timeout)
        if not ready:
            silent = ", ".join(str(ranks[id(reader)]) for reader in waiting)
            raise ParallelError(f"ranks {silent} of {len(readers)} did not answer within {timeout:.0f} s")
        for reader in ready:
            assert isinstance(reader, Connection), "only pipes are waited for"
            rank = ranks[id(reader)]
            try:
                failed, result = pickle.loads(reader.recv_bytes())
            except EOFError:
                raise ParallelError(f"rank {rank} of {len(readers)} ended without a result") from None
            if failed:
                raise ParallelError(f"rank {rank} of {len(readers)} failed:\n{result}")
            results[rank] = result
            reader.close()
            waiting.remove(reader)
    return [results[rank] for rank in range(len(readers))]


def _run(
    writer: Connection, place: tuple[str, int, int, float], function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    store, rank, world_size, timeout = place
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout)
        )
        answer = (False, function(*args))
        dist.destroy_process_group()
    except BaseException:  # noqa: BLE001  # whatever it was, the caller has to see it
        answer = (True, traceback.format_exc())
    # Plain bytes: multiprocessing would pass tensors by file descriptors that die with this process.
    writer.send_bytes(pickle.dumps(answer))
    writer.close()
