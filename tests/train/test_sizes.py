"""Schedules of batch size and context length: pure functions of the step, the data's order untouched."""

from pathlib import Path

import pytest
import torch
from train_case import same_weights, tiny_config, tiny_model, tiny_rows, tiny_trainer

from lmworks.core.errors import ConfigError
from lmworks.nn.attention_context import PackedContext
from lmworks.train.metrics import read_metrics
from lmworks.train.sizes import SizeStage, StepSize, cut, size_at, tokens_before

STAGES = (SizeStage(from_step=2, batch_tokens=30), SizeStage(from_step=5, batch_tokens=40, sequence_length=8))


def test_sizes_change_at_their_steps_and_sums_agree():
    start = StepSize(10, 4)
    sizes = [size_at(start, STAGES, step) for step in range(7)]
    assert [s.batch_tokens for s in sizes] == [10, 10, 30, 30, 30, 40, 40]
    assert [s.sequence_length for s in sizes] == [4] * 5 + [8] * 2
    for step in range(8):
        assert tokens_before(start, STAGES, step) == sum(s.batch_tokens for s in sizes[:step])


def test_cut_documents_are_the_same_tokens_in_pieces_that_do_not_see_each_other():
    batch = tiny_rows(tiny_config()).rows(0, 3)
    pieces = cut(batch, 8)
    assert torch.equal(pieces.input_ids, batch.input_ids)
    assert torch.equal(pieces.targets, batch.targets)
    lengths = pieces.cu_seqlens.diff()
    expected = [min(8, n - start) for n in batch.cu_seqlens.diff().tolist() for start in range(0, n, 8)]
    assert lengths.tolist() == expected
    assert pieces.cu_seqlens.dtype == batch.cu_seqlens.dtype
    model = tiny_model()
    hidden = model(pieces.input_ids, pieces.positions, PackedContext(pieces.cu_seqlens))
    begin, end = pieces.cu_seqlens[3:5].tolist()
    own = torch.tensor([0, end - begin], dtype=torch.int32)
    alone = model(pieces.input_ids[begin:end], torch.arange(end - begin), PackedContext(own))
    assert torch.allclose(hidden[begin:end], alone, atol=1e-6)


def test_a_run_sees_every_row_once_whatever_the_schedule(tmp_path: Path):
    seen: list[int] = []

    class Watched:
        def rows(self, start: int, count: int):
            seen.extend(range(start, start + count))
            return tiny_rows(tiny_config()).rows(start, count)

    stages = [{"from_step": 2, "batch_tokens": 192}, {"from_step": 4, "batch_tokens": 64, "sequence_length": 16}]
    trainer = tiny_trainer(tmp_path, size_schedule=stages)
    trainer.rows = Watched()
    trainer.fit()
    assert seen == list(range(2 * 4 + 2 * 6 + 4 * 2))
    assert trainer.config.total_tokens == len(seen) * 32
    assert [r["tokens"] // 32 for r in read_metrics(tmp_path / "metrics.jsonl")] == [4, 8, 14, 20, 22, 24, 26, 28]


def test_resume_inside_a_schedule_gives_the_same_bits(tmp_path: Path):
    settings = {"size_schedule": [{"from_step": 3, "batch_tokens": 192, "sequence_length": 8}], "checkpoint_every": 4}
    straight = tiny_trainer(tmp_path / "straight", **settings)
    straight.fit()

    def crash(end):
        if end.step == 5:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path / "cut", callbacks=(crash,), **settings).fit()
    resumed = tiny_trainer(tmp_path / "cut", **settings)
    resumed.fit()
    assert same_weights(straight.model, resumed.model)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"from_step": 8}], "from_step 8 must follow 0 and come before the run's 8 steps"),
        ([{"from_step": 3}, {"from_step": 3}], "from_step 3 must follow 3"),
        ([{"from_step": 3, "batch_tokens": 96}], "batch_tokens 96 from step 3 on is not a multiple of 64"),
        ([{"from_step": 3, "sequence_length": 64}], "sequence_length 64 from step 3 on exceeds the run's 32"),
        ([{"from_step": 0}], "from_step"),
    ],
)
def test_impossible_schedules_are_refused(stages: list, message: str):
    with pytest.raises(ConfigError, match=message):
        tiny_config(size_schedule=stages)
