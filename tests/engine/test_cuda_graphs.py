"""Recorded steps give the logits of steps that are not recorded. A recording here is a function called again."""

from __future__ import annotations

import logging

import pytest
import torch
from tiny_engine import random_prompts, tiny_model

from lmworks.core.sampling import SamplingParams
from lmworks.engine.execution.compiled_decode import CompiledDecode
from lmworks.engine.execution.cuda_graphs import MOST_TOKENS, DecodeStep, GraphRunner, powers_up_to
from lmworks.engine.execution.kv_cache import KVCache
from lmworks.engine.execution.model_runner import ModelRunner
from lmworks.engine.execution.packed_linear import pack_linears
from lmworks.engine.execution.recorded_context import NotRecordableError
from lmworks.engine.request import Request
from lmworks.engine.scheduling.scheduler import Chunk
from lmworks.engine.scheduling.sequence import Sequence
from lmworks.engine.weights.adapters import Adapter
from lmworks.kernels.native.library import library
from lmworks.models.position_slots import AlibiPositions, LearnedPositions, SinusoidalPositions

BLOCK_SIZE, BLOCKS, CPU = 8, 60, torch.device("cpu")

pytestmark = pytest.mark.skipif(library() is None, reason="no compiler: no operation attends by tensors")


class Setup:
    """A model whose linear maps give the same bits in any batch, a cache with a spare block, and both runners."""

    def __init__(self, model=None, *, max_num_seqs=5, record=None, faster=None):
        self.model = (model or tiny_model()).eval()
        pack_linears(self.model, "none")
        self.cache = KVCache(self.model.config, BLOCKS + 1, BLOCK_SIZE, torch.float32, CPU)
        self.plain = ModelRunner(self.model, self.cache, "batched", max_model_len=64)
        self.plain.native = False
        self.plain.attach(self.cache)
        self.plain.method = "auto"
        self.recorded = []
        self.decode = DecodeStep(self.model, self.cache.layers)
        self.runner = GraphRunner(
            self.decode, max_num_seqs=max_num_seqs, max_model_len=64, block_size=BLOCK_SIZE, spare_block=BLOCKS,
            vocabulary=self.model.config.vocab_size, device=CPU, record=record or self.record,
            faster=None if faster is None else faster(self.decode, BLOCKS, CPU),
        )  # fmt: skip
        self.free = list(range(BLOCKS))

    def record(self, step):
        step()
        self.recorded.append(step)
        return step

    def sequences(self, lengths):
        """With all but their last token computed."""
        made = []
        for i, prompt in enumerate(random_prompts(lengths)):
            s = Sequence(
                Request(f"{i}-{len(self.free)}", tuple(prompt), SamplingParams(max_tokens=9)), 0, tuple(prompt), 9
            )
            s.block_table = [self.free.pop() for _ in range(-(-(len(prompt) + MOST_TOKENS) // BLOCK_SIZE))]
            if len(prompt) > 1:
                self.plain.run([Chunk(s, len(prompt) - 1, 0)])
                s.num_computed_tokens = len(prompt) - 1
            made.append(s)
        return made

    @torch.inference_mode()
    def run(self, chunks):
        return self.runner.run(chunks)


def decoding(sequences):
    return [Chunk(s, 1, 1) for s in sequences]


def test_sizes_are_powers_of_two_and_the_largest():
    assert powers_up_to(1) == [1]
    assert powers_up_to(8) == [1, 2, 4, 8]
    assert powers_up_to(20) == [1, 2, 4, 8, 16, 20]


def test_a_size_is_recorded_the_second_time_and_serves_all_batches_that_fit():
    setup = Setup()
    sequences = setup.sequences([9, 3, 30, 17])
    assert setup.run(decoding(sequences)) is None
    assert setup.recorded == []
    for count in (4, 3, 4):
        chunks = decoding(sequences[:count])
        expected = setup.plain.run(chunks)
        assert torch.equal(setup.run(chunks), expected)
    assert len(setup.recorded) == 1


def test_rows_are_the_same_bits_whatever_fills_the_batch_up():
    setup = Setup(max_num_seqs=8)
    sequences = setup.sequences([9, 3, 30, 17, 5])
    for s in sequences:
        setup.run(decoding([s]))
    alone = [setup.run(decoding([s])).clone() for s in sequences]
    for part in (sequences, sequences[::-1], sequences[2:]):
        setup.run(decoding(part))
        got = setup.run(decoding(part))
        assert got.shape == (len(part), setup.model.config.vocab_size)
        for row, s in zip(got, part, strict=True):
            assert torch.equal(row, alone[sequences.index(s)][0])


def test_rows_that_fill_up_write_to_the_spare_block_alone():
    setup = Setup(max_num_seqs=4)
    few, many = setup.sequences([9, 3, 7]), setup.sequences([6, 12, 20, 4])
    for batch in (many, many, few):
        setup.run(decoding(batch))
    kept = [layer.clone() for layer in setup.cache.layers]
    setup.run(decoding(few))
    own = {(s.block_table[(len(s.token_ids) - 1) // BLOCK_SIZE]) for s in few} | {BLOCKS}
    others = [i for i in range(BLOCKS) if i not in own]
    for before, after in zip(kept, setup.cache.layers, strict=True):
        assert torch.equal(before[:, :, others], after[:, :, others])


def test_tables_follow_their_sequences():
    """A row may be another's now, a sequence may have grown, its last block may have been copied before a write."""
    setup = Setup(max_num_seqs=2)
    first, second = setup.sequences([9, 15])
    for _ in range(2):
        setup.run(decoding([first, second]))
    moved = setup.free.pop()
    for layer in setup.cache.layers:
        layer[:, :, moved] = layer[:, :, second.block_table[1]]
    second.block_table[1] = moved
    for _ in range(20):
        for s in (first, second):
            s.num_computed_tokens = len(s.token_ids)
            s.token_ids.append(7)
            if len(s.token_ids) > len(s.block_table) * BLOCK_SIZE:
                s.block_table.append(setup.free.pop())
        chunks = decoding([second, first])
        expected = setup.plain.run(chunks)
        assert torch.equal(setup.run(chunks), expected)


def test_guesses_are_verified_from_a_recording_too():
    setup = Setup()
    sequences = setup.sequences([9, 3, 14])
    for s in sequences:
        s.draft_token_ids = [5, 6, 7]
    chunks = [Chunk(s, 4, 4) for s in sequences]
    expected = setup.plain.run(chunks)
    assert setup.run(chunks) is None
    assert torch.equal(setup.run(chunks), expected)
    assert setup.runner.key(chunks)[:2] == (4, 4)


def test_other_steps_are_left_to_the_modules():
    setup = Setup(max_num_seqs=2)
    first, second, third = setup.sequences([9, 20, 30])
    assert setup.runner.key(decoding([first, second])) is not None
    assert setup.runner.key(decoding([first, second, third])) is None  # too many
    assert setup.runner.key([Chunk(first, 3, 1), Chunk(second, 3, 1)]) is None  # the ends of prompts
    assert setup.runner.key([Chunk(first, 1, 1), Chunk(second, 2, 2)]) is None  # guesses for one alone
    assert setup.runner.key([Chunk(first, MOST_TOKENS + 1, MOST_TOKENS + 1)]) is None
    first.adapter = Adapter("a", "a", 1, {})
    assert setup.runner.key(decoding([first, second])) is None


def test_wider_tables_get_recordings_of_their_own():
    setup = Setup()
    runner = GraphRunner(
        setup.decode, max_num_seqs=4, max_model_len=5000, block_size=BLOCK_SIZE, spare_block=BLOCKS, vocabulary=9,
        device=CPU, record=setup.record,
    )  # fmt: skip
    (s,) = setup.sequences([9])
    widths = []
    for blocks in (1, 128, 129, 256, 300, 625, 626):
        s.block_table = [0] * blocks
        key = runner.key(decoding([s]))
        widths.append(None if key is None else key[2])
    assert widths == [128, 128, 256, 256, 512, 625, None]


@pytest.mark.parametrize("error", [NotRecordableError("sinks"), RuntimeError("the step waits for the GPU")])
def test_a_model_that_cannot_be_recorded_runs_on_without(error, caplog):
    asked = []

    def record(step):
        asked.append(step)
        raise error

    setup = Setup(record=record)
    chunks = decoding(setup.sequences([9]))
    with caplog.at_level(logging.WARNING):
        assert [setup.run(chunks) for _ in range(4)] == [None] * 4
    assert len(asked) == 1
    assert str(error) in caplog.text


def test_attention_without_a_kernel_cannot_be_recorded():
    setup = Setup()
    context_step = setup.sequences([9])
    setup.run(decoding(context_step))
    layer = setup.model.decoder.layers[0].self_attn
    layer.mask = ~layer.mask
    assert setup.run(decoding(context_step)) is None
    assert setup.run(decoding(context_step)) is None


@pytest.mark.parametrize("positions", [LearnedPositions(), AlibiPositions(), SinusoidalPositions()])
def test_every_kind_of_positions(positions):
    setup = Setup(tiny_model(positions=positions))
    chunks = decoding(setup.sequences([9, 20]))
    expected = setup.plain.run(chunks)
    setup.run(chunks)
    assert torch.equal(setup.run(chunks), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_steps_are_swapped_in_when_they_are_ready():
    setup = Setup(faster=CompiledDecode)
    sequences = setup.sequences([9, 3, 30])
    compiled = setup.runner._faster
    for batch in (sequences[:1], sequences):
        chunks = decoding(batch)
        expected = setup.plain.run(chunks)
        setup.run(chunks)
        assert torch.equal(setup.run(chunks), expected)
        before = len(setup.recorded)
        compiled.wait()
        torch.testing.assert_close(setup.run(chunks), expected, atol=1e-4, rtol=1e-4)
        assert len(setup.recorded) == before + 1


def test_a_compiler_that_fails_costs_a_line_in_the_log(monkeypatch, caplog):
    def broken(decode, **options):
        def call(*inputs):
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    setup = Setup(faster=CompiledDecode)
    chunks = decoding(setup.sequences([9, 3]))
    expected = setup.plain.run(chunks)
    for _ in range(3):
        got = setup.run(chunks)
        setup.runner._faster.wait()
    assert torch.equal(got, expected)
    assert "no compiler" in caplog.text
