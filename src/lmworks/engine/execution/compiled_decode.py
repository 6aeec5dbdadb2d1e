"""A decoding step through `torch.compile`, made ready in a thread of its own while steps go on without it.

Norms, rotations and gates become one kernel where they meet; attention and products with integer weights stay
operations. Compiled code is kept in PyTorch's cache on disk for the next start. One function serves all sizes; a size
is served when the function was run with it, so that no step ever waits for the compiler. Knows no request.
"""

from __future__ import annotations

import logging
import threading
from queue import SimpleQueue

import torch

from lmworks.engine.execution.cuda_graphs import Decode, Key

log = logging.getLogger(__name__)


class CompiledDecode:
    """Gives the compiled function for sizes that it is ready for; see `cuda_graphs.FasterDecode`.

    Args:
        decode: to be compiled.
        spare_block: of the cache, to which trial runs write.
        device: of model and cache.
    """

    def __init__(self, decode: Decode, spare_block: int, device: torch.device) -> None:
        self._decode, self._spare, self._device = decode, spare_block, device
        self._compiled: Decode | None = None
        self._ready: set[Key] = set()
        self._asked: set[Key] = set()
        self._queue: SimpleQueue[Key] = SimpleQueue()
        self._worker: threading.Thread | None = None
        self._failed = False

    def of(self, key: Key) -> Decode | None:
        """The compiled function if it is ready for steps of that size; else have it made ready."""
        if key in self._ready:
            return self._compiled
        if key not in self._asked and not self._failed:
            self._asked.add(key)
            self._queue.put(key)
            self._wake()
        elif self._worker is None and not self._queue.empty():
            self._wake()  # it went while the last size was put
        return None

    def wait(self) -> None:
        """Until nothing is being made."""
        while (worker := self._worker) is not None:
            worker.join()

    def _wake(self) -> None:
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="lmworks-compile", daemon=True)
            self._worker.start()

    def _work(self) -> None:
        try:
            if self._compiled is None:  # not earlier: it imports the whole compiler
                self._compiled = torch.compile(self._decode, dynamic=True)
            while not self._queue.empty():
                key = self._queue.get()
                self._try(self._compiled, key)
                self._ready.add(key)
                log.info("compiled a step of %d sequences, %d tokens to each, %d blocks", *key)
        except Exception as error:  # noqa: BLE001 - whatever a compiler raises, steps go on without it
            self._failed = True
            log.warning("steps stay as they are, the compiler failed: %s", error)
        finally:
            self._worker = None

    @torch.inference_mode()
    def _try(self, compiled: Decode, key: Key) -> None:
        batch, length, width = key
        inputs = torch.full((batch, length + 1 + width), self._spare, dtype=torch.int32, device=self._device)
        inputs[:, : length + 1] = 0
        arguments = inputs[:, :length], inputs[:, length], inputs[:, length + 1 :]
        if self._device.type == "cuda":
            beside = torch.cuda.Stream(self._device)
            with torch.cuda.stream(beside):
                compiled(*arguments)
            beside.synchronize()
        else:
            compiled(*arguments)
