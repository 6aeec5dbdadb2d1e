"""Work in the background, one at a time, on copies of tensors that training goes on to change.

The copies live in host memory that is kept for the next time, pinned where they come from a device. A thread does the
work: writing, flushing and hashing release the interpreter. Knows no checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class Staging:
    """Buffers for the values of named tensors."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    @torch.no_grad()
    def copy(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The caller's parts of all tensors in host memory; overwrites what the last call gave.

        Returns:
            By name; of a DTensor its local part.
        """
        sources = {name: t.to_local() if isinstance(t, DTensor) else t for name, t in state.items()}
        self._buffers = {name: self._buffer(name, source) for name, source in sources.items()}
        for name, source in sources.items():
            self._buffers[name].copy_(source, non_blocking=True)
        if any(source.is_cuda for source in sources.values()):
            torch.cuda.synchronize()
        return self._buffers

    def _buffer(self, name: str, source: Tensor) -> Tensor:
        kept = self._buffers.get(name)
        if kept is not None and kept.shape == source.shape and kept.dtype == source.dtype:
            return kept
        return torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)


class Background:
    """A thread that does one piece of work after the other, and keeps its error until someone asks."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether work goes on."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether the last work ended in an error that was not raised yet."""
        return self._error is not None

    def start(self, work: Callable[[], object]) -> None:
        """Begin, once nothing else is under way.

        A program that ends does not wait for it: what has to be whole must be published by the work itself.
        """
        assert self._thread is None, "waited for before the next begins"

        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001  # `wait` raises it
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is under way.

        Args:
            timeout: seconds to wait at most.

        Returns:
            False if the time was up before.

        Raises:
            Exception: what the work raised, once.
        """
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                return False
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True
