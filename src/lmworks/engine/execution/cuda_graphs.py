"""Steps that only decode, recorded as CUDA graphs: one launch instead of hundreds, which take longer than their work.

A recording is made for a number of sequences, of new tokens to each, and of blocks in a table, each rounded up, the
second time that such a step comes: starting costs nothing, and what never comes takes no memory. Its inputs lie where
they always do; rows that fill it up write to a spare block, which belongs to nobody. All recordings share one pool of
memory and one tensor of logits. Weights may change in place; whoever moves them, or the cache, makes another runner.

The logic knows no GPU: where recordings are not graphs but functions that are called again, it is the same, and tested.
Knows no sampling.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lmworks.engine.config import EngineConfig
from lmworks.engine.execution.recorded_context import NotRecordableError, RecordedContext
from lmworks.engine.scheduling.scheduler import Chunk
from lmworks.models.transformer import Transformer

MOST_TOKENS = 8
"""New tokens to a sequence at most: the one that was sampled, and guesses."""
LEAST_KEYS = 1024
"""Tables are recorded for so many tokens, and for powers of two beyond: longer ones cost programs without work."""
WARM_UPS = 2
"""Runs before a recording, in which kernels are compiled and libraries take their memory."""

log = logging.getLogger(__name__)

Key = tuple[int, int, int]
"""Sequences, new tokens to each, blocks to each."""
Decode = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Tokens [S, L], starts [S] and block tables [S, W], all int32 -> logits [S·L, V]."""
Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""From a function to another that does the same once more, to the same tensors."""


class DecodeStep:
    """A step of the model as a function of tensors alone; see `Decode`.

    Args:
        model: a decoder.
        layers: the cache.
    """

    def __init__(self, model: Transformer, layers: Sequence[Tensor]) -> None:
        self.model, self.layers = model, layers

    def __call__(self, tokens: Tensor, starts: Tensor, tables: Tensor) -> Tensor:
        """Compute the tokens' keys and values, and logits after each."""
        length = tokens.shape[1]
        positions = (starts[:, None] + torch.arange(length, dtype=torch.int32, device=starts.device)).flatten().long()
        context = RecordedContext(self.layers, tables.contiguous(), starts.contiguous(), length)
        return self.model.logits(self.model(tokens.flatten().long(), positions, context))


class FasterDecode(Protocol):
    """Where faster functions come from, later."""

    def of(self, key: Key) -> Decode | None:
        """The one for steps of that size, or None, upon which it is made."""
        ...


@dataclass
class Recording:
    """A step that can be replayed, and its inputs."""

    replay: Callable[[], None]
    decode: Decode
    """What was recorded."""
    host: Tensor
    """[S, L + 1 + W] int32: tokens, position of the first, blocks."""
    inputs: Tensor
    """The same on the device."""
    tables: list[list[int]]
    """Those that the rows of `host` hold."""


class GraphRunner:
    """Runs steps from recordings.

    Args:
        decode: what is recorded.
        max_num_seqs: of a step.
        max_model_len: tokens of a sequence.
        block_size: of the cache.
        spare_block: of the cache, that no sequence has.
        vocabulary: V.
        device: of model and cache.
        record: makes the recordings.
        faster: functions that replace `decode`.
    """

    def __init__(
        self, decode: Decode, *, max_num_seqs: int, max_model_len: int, block_size: int, spare_block: int,
        vocabulary: int, device: torch.device, record: Recorder, faster: FasterDecode | None = None,
    ) -> None:  # fmt: skip
        self._decode, self._record, self._faster = decode, record, faster
        self._batches, self._spare, self._device = powers_up_to(max_num_seqs), spare_block, device
        self._most_width = -(-max_model_len // block_size)
        self._least_width = min(-(-LEAST_KEYS // block_size), self._most_width)
        self._vocabulary = vocabulary
        self._logits: dict[int, Tensor] = {}
        """[S·L, V] float32 by L."""
        self._met: set[Key] = set()
        self._recordings: dict[Key, Recording] = {}
        self._refused = False

    def run(self, chunks: Sequence[Chunk]) -> Tensor | None:
        """Compute a step.

        Args:
            chunks: of the step.

        Returns:
            [R, V] float32 logits after every token, which the next step overwrites; or None where the step is of
            another kind or has no recording yet. Nothing was done then.
        """
        key = None if self._refused else self.key(chunks)
        if key is None:
            return None
        recording = self._recordings.get(key)
        faster = None if self._faster is None else self._faster.of(key)
        if recording is None or (faster is not None and recording.decode is not faster):
            if key not in self._met:
                self._met.add(key)
                return None
            recording = self._make(key, faster or self._decode)
            if recording is None:
                return None
        self._fill(recording, chunks)
        recording.inputs.copy_(recording.host, non_blocking=True)
        recording.replay()
        return self._logits[key[1]][: len(chunks) * key[1]]

    def key(self, chunks: Sequence[Chunk]) -> Key | None:
        """Size of the recording for a step; None where it does not only decode, or not alike for all sequences."""
        length = chunks[0].length
        if length > MOST_TOKENS or len(chunks) > self._batches[-1]:
            return None
        width = self._least_width
        for chunk in chunks:
            sequence = chunk.sequence
            if chunk.length != length or chunk.num_logits != length or sequence.adapter is not None:
                return None
            width = max(width, len(sequence.block_table))
        if width > self._most_width:
            return None
        batch = self._batches[bisect_left(self._batches, len(chunks))]
        return batch, length, min(1 << (width - 1).bit_length(), self._most_width)

    def _make(self, key: Key, decode: Decode) -> Recording | None:
        """Record a step; None where the model cannot be recorded, and then never again."""
        batch, length, width = key
        on_gpu = self._device.type == "cuda"
        host = torch.full((batch, length + 1 + width), self._spare, dtype=torch.int32, pin_memory=on_gpu)
        host[:, : length + 1] = 0
        inputs = torch.empty_like(host, device=self._device).copy_(host)
        if length not in self._logits:
            rows = self._batches[-1] * length
            self._logits[length] = torch.empty((rows, self._vocabulary), dtype=torch.float32, device=self._device)
        logits = self._logits[length][: batch * length]

        def step() -> None:
            logits.copy_(decode(inputs[:, :length], inputs[:, length], inputs[:, length + 1 :]))

        try:
            replay = self._record(step)
        except (NotRecordableError, RuntimeError) as error:
            log.warning("steps run without CUDA graphs, the model cannot be recorded: %s", error)
            self._refused = True
            self._recordings.clear()
            return None
        log.info("recorded a step of %d sequences, %d tokens to each, %d blocks", *key)
        self._recordings[key] = Recording(replay, decode, host, inputs, [[] for _ in range(batch)])
        return self._recordings[key]

    def _fill(self, recording: Recording, chunks: Sequence[Chunk]) -> None:
        host, held = recording.host.numpy(), recording.tables
        length = chunks[0].length
        for row, chunk in enumerate(chunks):
            table = chunk.sequence.block_table
            host[row, : length + 1] = [*chunk.token_ids, chunk.start]
            if held[row] != table:
                host[row, length + 1 : length + 1 + len(table)] = table
                held[row] = list(table)
        for row in range(len(chunks), len(held)):
            if not held[row]:
                break  # rows are used from the first on, so those behind are free too
            host[row, : length + 1] = 0
            host[row, length + 1 :] = self._spare
            held[row] = []


def powers_up_to(most: int) -> list[int]:
    """1, 2, 4, …, and `most` itself."""
    return [*(1 << i for i in range((most - 1).bit_length())), most]


@dataclass(frozen=True)
class GraphSettings:
    """What of a configuration graphs depend on."""

    max_num_seqs: int
    compile: bool


def graph_settings(config: EngineConfig) -> GraphSettings | None:
    """None where steps are not to be recorded."""
    return None if config.enforce_eager or config.cpu_offload_gb else GraphSettings(config.max_num_seqs, config.compile)


class CudaRecorder:
    """Records CUDA graphs, all in one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder`.

        Raises:
            RuntimeError: the step waits for the GPU, or does what a graph cannot hold.
        """
        current = torch.cuda.current_stream()
        beside = torch.cuda.Stream()
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                step()
        current.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on taking memory meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            step()
        replay: Callable[[], None] = graph.replay
        return replay
