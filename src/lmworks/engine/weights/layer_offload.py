"""Layers whose weights stay in the CPU's memory and visit an accelerator one after the other.

Two places on the device take turns: while a layer computes in one, the next is copied into the other on a stream of
its own. A step can then take no less time than the copies do, so this is for models that do not fit otherwise. Weights
are read only; what a layer computes is what it would compute anywhere. Knows no model and no request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ALIGNMENT = 256
"""Bytes: what tensors of their own would begin at."""


class LayerOffload:
    """Keeps the last of some layers aside.

    Args:
        layers: on the CPU, applied in this order; the modules stay, their tensors become views of the two places.
        device: where they compute; a CPU copies within its memory, for tests.
        num_bytes: of weights to keep aside at least, or all there are.
    """

    def __init__(self, layers: Sequence[nn.Module], device: torch.device, num_bytes: int) -> None:
        sizes = [_packed_bytes(layer) for layer in layers]
        first = len(layers)
        while first and sum(sizes[first:]) < num_bytes:
            first -= 1
        self.num_layers, self.num_bytes = len(layers) - first, sum(sizes[first:])
        if not self.num_layers:
            return
        largest = max(sizes[first:])
        self._places = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(2)]
        self._holds: list[int | None] = [None, None]
        """Which layer lies in each place."""
        self._kept: list[Tensor] = []
        """Each layer's weights, one behind the other, where the device can fetch them by itself."""
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._copied, self._used = ([_event(), _event()] for _ in range(2))
        for number, layer in enumerate(layers[first:]):
            self._kept.append(_moved_out(layer, self._places[number % 2], pinned=device.type == "cuda"))
            layer.register_forward_pre_hook(_numbered(self._before, number))
            layer.register_forward_hook(_numbered(self._after, number))

    def _before(self, number: int) -> None:
        """A layer is about to compute."""
        self._fetch(number)
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(self._copied[number % 2])
        following = (number + 1) % self.num_layers
        if following % 2 != number % 2:
            self._fetch(following)

    def _after(self, number: int) -> None:
        """A layer's work has been queued."""
        if self._stream is not None:
            self._used[number % 2].record(torch.cuda.current_stream(self._stream.device))
        following = (number + 1) % self.num_layers
        if following % 2 == number % 2:  # the round begins anew in the same place
            self._fetch(following)

    def _fetch(self, number: int) -> None:
        """Begin to copy a layer into its place, once the one that lies there has computed."""
        at = number % 2
        if self._holds[at] == number:
            return
        self._holds[at] = number
        kept = self._kept[number]
        if self._stream is None:
            self._places[at][: len(kept)].copy_(kept)
            return
        self._stream.wait_event(self._used[at])
        with torch.cuda.stream(self._stream):
            self._places[at][: len(kept)].copy_(kept, non_blocking=True)
            self._copied[at].record(self._stream)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()


def _numbered(call: Any, number: int) -> Any:
    """A hook that tells which layer it is."""

    def hook(*_: Any) -> None:
        call(number)

    return hook


def _moved_out(layer: nn.Module, place: Tensor, *, pinned: bool) -> Tensor:
    """A layer's tensors, packed; the layer is left with views of its place."""
    kept = torch.empty(_packed_bytes(layer), dtype=torch.uint8, pin_memory=pinned)
    for module, name, tensor, begin in _tensors(layer):
        kept[begin : begin + tensor.nbytes].copy_(tensor.detach().contiguous().flatten().view(torch.uint8))
        view = place[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(view, requires_grad=False)
        else:
            module._buffers[name] = view
    return kept


def _tensors(layer: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor, int]]:
    """Parameters and buffers, their modules, and where each begins."""
    begin = 0
    for module in list(layer.modules()):
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                yield module, name, tensor, begin
                begin += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def _packed_bytes(layer: nn.Module) -> int:
    return max((begin + tensor.nbytes for _, _, tensor, begin in _tensors(layer)), default=0)
