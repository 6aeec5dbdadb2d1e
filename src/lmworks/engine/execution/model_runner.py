"""From scheduled chunks to logits: lays the tokens out flat and runs the one model once. Knows no sampling."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor

from lmworks.core.sampling import SamplingParams
from lmworks.engine.execution.compiled_decode import CompiledDecode
from lmworks.engine.execution.cuda_graphs import CudaRecorder, DecodeStep, GraphRunner, GraphSettings
from lmworks.engine.execution.kv_cache import KVCache
from lmworks.engine.execution.lowering import LoweredDecoder, NotLowered
from lmworks.engine.execution.packed_linear import PackedLinear
from lmworks.engine.execution.paged_context import PagedContext
from lmworks.engine.request import Request
from lmworks.engine.scheduling import sequence as sequences
from lmworks.engine.scheduling.scheduler import Chunk
from lmworks.engine.servable import shares_prefixes
from lmworks.engine.weights.adapters import RowAdapters, added
from lmworks.kernels.native.library import library
from lmworks.kernels.native_attention import holds_natively
from lmworks.kernels.paged_attention import PagedAttentionMethod
from lmworks.models.transformer import Transformer
from lmworks.nn.attention_context import PackedContext

PARALLEL_TOKENS = 64
"""Steps of this many tokens take all of torch's threads."""
PROBE_TOKENS = 24
"""On which a program is compared with the modules it was made from."""
EXACT_BOUND, ROUNDED_BOUND = 1e-3, 0.35
"""How far they may be apart, in float32 and where activations are rounded on the way: a part left out makes them differ
by about their size, while rounding to 8 bits twice, from activations that differ in the last bit, gives a tenth."""

log = logging.getLogger(__name__)


class ModelRunner:
    """Runs the model over the paged cache: as a native program where it can be one, else module by module.

    Args:
        model: any decoder, with an encoder or without, in evaluation mode when `run` is called.
        cache: its keys and values.
        method: of attention; `reference` runs module by module.
        decode_threads: for steps of few tokens on a CPU, where the model runs module by module; None takes half the
            cores. Such a step is hundreds of operations of microseconds: more threads wait for each other longer than
            they work.
        max_model_len: positions that occur.
        graphs: how steps are recorded on a GPU; None launches every kernel.
    """

    def __init__(
        self,
        model: Transformer,
        cache: KVCache,
        method: PagedAttentionMethod = "batched",
        decode_threads: int | None = None,
        max_model_len: int | None = None,
        graphs: GraphSettings | None = None,
    ) -> None:
        self.model, self.cache, self.method = model, cache, method
        self._settings = graphs
        self._graphs: GraphRunner | None = None
        self._recorded: tuple[object, ...] = ()
        self.decode_threads = decode_threads or max(1, (os.cpu_count() or 2) // 2)
        self._max_model_len = max_model_len or model.config.max_position_embeddings
        self.native = self._agrees()
        """Whether steps run as a native program."""
        self.attach(cache)

    def attach(self, cache: KVCache) -> None:
        """Run over this cache from now on, and read the modules again: a program has copies of their small tensors."""
        self.cache = cache
        self._lowered = LoweredDecoder(self.model, cache.layers, self._max_model_len) if self.native else None
        # Recordings hold addresses: new numbers in the same places leave them as they are.
        placed = *(t.data_ptr() for t in (*self.model.parameters(), *self.model.buffers())), cache
        if placed != self._recorded:
            self._recorded, self._graphs = placed, self._graph_runner()

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Compute the chunks' keys and values.

        Returns:
            [R, V] float32 logits after the last `num_logits` tokens of each chunk, in the order of the chunks.
        """
        if self._lowered is not None:
            return self._run_program(self._lowered, chunks)
        logits = None if self._graphs is None else self._graphs.run(chunks)
        return self._run_modules(chunks, self.cache) if logits is None else logits

    def _graph_runner(self) -> GraphRunner | None:
        """None where steps cannot be recorded, or are not to be."""
        model, settings = self.model, self._settings
        if settings is None:
            return None
        if model.device.type != "cuda":
            if settings.compile:
                log.warning("compile has no effect on %s", model.device)
            return None
        if self.method in ("batched", "reference"):
            return None
        if not shares_prefixes(model):  # a step then depends on more than tokens and places
            return None
        if not all(map(holds_natively, self.cache.layers)):
            log.info("steps run without CUDA graphs: no kernel reads the model's cache")
            return None
        spare, decode = self.cache.spare_block, DecodeStep(model, self.cache.layers)
        return GraphRunner(
            decode, max_num_seqs=settings.max_num_seqs, max_model_len=self._max_model_len,
            block_size=self.cache.layers[0].shape[3], spare_block=spare, vocabulary=model.config.vocab_size,
            device=model.device, record=CudaRecorder(),
            faster=CompiledDecode(decode, spare, model.device) if settings.compile else None,
        )  # fmt: skip

    @property
    def torch_threads(self) -> int:
        """How many threads torch should use during a step.

        After every operation its threads look for the next one for milliseconds, on the cores that the native
        operations' threads want.
        """
        return 1 if self.native else torch.get_num_threads()

    def _run_program(self, lowered: LoweredDecoder, chunks: Sequence[Chunk]) -> Tensor:
        tokens, positions, wanted = array("i"), array("i"), array("i")
        tables, rows = [], []
        for chunk in chunks:
            row, start = len(tokens), chunk.start
            tokens.extend(chunk.token_ids)
            end = len(tokens)
            positions.extend(range(start, start + end - row))
            wanted.extend(range(end - chunk.num_logits, end))
            table = array("i", chunk.sequence.block_table)
            tables.append(table)  # keeps it alive until the step is over
            rows.append((table.buffer_info()[0], start, end - row, row))
        if lowered.angles_by_step:
            lengths = PagedContext(self.cache, chunks, self.method, self.model.device).lengths()
            lowered.set_angles(torch.tensor(positions), lengths)
        adapted = RowAdapters.of(chunks)
        if adapted is None:
            return lowered.program.run(tokens, positions, rows, wanted)
        sets = [adapter.by_site(lowered.sites) for adapter in adapted.adapters]
        return lowered.program.run(tokens, positions, rows, wanted, sets, adapted.chosen)

    def _run_modules(self, chunks: Sequence[Chunk], cache: KVCache) -> Tensor:
        tokens: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for chunk in chunks:
            tokens += chunk.token_ids
            positions += range(chunk.start, chunk.start + chunk.length)
            wanted += range(len(tokens) - chunk.num_logits, len(tokens))
        model, device = self.model, self.model.device
        sources = [chunk.sequence.source_token_ids for chunk in chunks if chunk.encodes]
        work = len(tokens) + sum(map(len, sources))
        rows = RowAdapters.of(chunks)
        with at_most_threads(self.decode_threads if work < PARALLEL_TOKENS else torch.get_num_threads()):
            memory, read = None, None
            if sources:
                read = RowAdapters.of_sources(chunks)
                with added(model, read):
                    memory = encode(model, sources)
            with added(model, rows, read):
                hidden = model(
                    torch.tensor(tokens, device=device),
                    torch.tensor(positions, device=device),
                    PagedContext(cache, chunks, self.method, device),
                    memory=memory,
                )
            if len(wanted) < len(tokens):
                picked = torch.tensor(wanted, dtype=torch.int64, device=device)
                hidden, rows = hidden[picked], None if rows is None else rows.at(wanted)
            with added(model, rows):
                return model.logits(hidden).float()

    def _agrees(self) -> bool:
        """Whether the model can be a native program that agrees with its modules; the log says why not."""
        model = self.model
        if (
            self.method == "reference"
            or not isinstance(getattr(model, "lm_head", None), PackedLinear)
            or library() is None
        ):
            return False
        try:
            difference, bound = self._difference()
        except NotLowered as part:
            log.info("the model runs module by module: no native program has %s", part)
            return False
        if not difference <= bound:
            log.warning(
                "the model runs module by module: its native program's logits differ by %.2g of their size, more than "
                "%.2g", difference, bound,
            )  # fmt: skip
            return False
        log.info("the model runs as a native program, %.2g from its modules", difference)
        return True

    @torch.inference_mode()
    def _difference(self) -> tuple[float, float]:
        """How far apart program and modules are on a few tokens, and may be, as shares of the logits' size.

        Raises:
            NotLowered: the model cannot be a program.
        """
        layer = self.cache.layers[0]
        block_size, length = layer.shape[3], min(PROBE_TOKENS, self._max_model_len)
        # A cache of its own: sequences may hold blocks of the other while new weights are made ready.
        cache = KVCache(self.model.config, -(-length // block_size), block_size, layer.dtype, layer.device)
        vocabulary = self.model.config.vocab_size
        prompt = tuple(i * 7919 % vocabulary for i in range(1, length + 1))
        sequence = sequences.Sequence(Request("probe", prompt, SamplingParams(max_tokens=1)), 0, prompt, 1)
        sequence.block_table.extend(range(-(-length // block_size)))
        chunks = [Chunk(sequence, length, length)]
        ours = self._run_program(LoweredDecoder(self.model, cache.layers, self._max_model_len), chunks)
        theirs = self._run_modules(chunks, cache)
        exact = self.model.dtype == layer.dtype == torch.float32
        # Files may keep the head in floating point while all else is on a grid.
        exact = exact and all(m.weight.exact for m in self.model.modules() if isinstance(m, PackedLinear))
        scale = (theirs - theirs.mean(-1, keepdim=True)).norm()
        return float((ours - theirs).norm() / scale), EXACT_BOUND if exact else ROUNDED_BOUND


def encode(model: Transformer, sources: Sequence[Sequence[int]]) -> Tensor:
    """The encoder's output [M, E] for sources packed end to end."""
    lengths = [len(source) for source in sources]
    ids = torch.tensor([i for source in sources for i in source], device=model.device)
    positions = torch.cat([torch.arange(n, device=model.device) for n in lengths])
    return model.encode(ids, positions, PackedContext(source_bounds(lengths, model.device)))


def source_bounds(lengths: Sequence[int], device: torch.device) -> Tensor:
    """[D+1] int32, where each of the packed sources begins and ends."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


@contextmanager
def at_most_threads(count: int) -> Iterator[None]:
    """Let torch use no more than `count` threads on the CPU."""
    before = torch.get_num_threads()
    if count >= before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
