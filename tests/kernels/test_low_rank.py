"""Updates of low rank: what is written, whatever the other rows get."""

from __future__ import annotations

import pytest
import torch

from lmworks.kernels.low_rank import LowRank, low_rank_update, low_rank_update_reference


def update(rank, inputs, outputs, dtype, generator):
    def matrix(columns):
        return torch.randn(rank, columns, generator=generator).to(dtype)

    return LowRank(matrix(inputs), matrix(outputs), 0.37)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rank", "inputs", "outputs"), [(1, 1, 1), (3, 50, 131), (4, 64, 64), (13, 37, 200)])
def test_every_row_gets_its_own(dtype, rank, inputs, outputs):
    generator = torch.Generator().manual_seed(rank)
    x, y = (torch.randn(9, size, generator=generator) for size in (inputs, outputs))
    updates = [update(rank, inputs, outputs, dtype, generator), None, update(2, inputs, outputs, dtype, generator)]
    chosen = torch.tensor([0, -1, 1, 2, 0, 0, 2, -1, 0], dtype=torch.int32)
    got = low_rank_update(x, y, updates, chosen)
    for row, number in enumerate(chosen.tolist()):
        expected = y[row]
        if number >= 0 and (one := updates[number]) is not None:
            expected = expected + 0.37 * one.up.float().T @ (one.down.float() @ x[row])
        torch.testing.assert_close(got[row], expected, atol=2e-4, rtol=1e-5)
        alone = low_rank_update(x[row : row + 1], y[row : row + 1], updates, chosen[row : row + 1])
        assert torch.equal(alone[0], got[row]), "company changed bits"
    torch.testing.assert_close(got, low_rank_update_reference(x, y, updates, chosen), atol=2e-4, rtol=1e-5)


def test_rows_that_are_not_numbers_keep_to_themselves():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 8, generator=generator), torch.zeros(3, 4)
    x[1] = float("nan")
    updates = [update(2, 8, 4, torch.float32, generator)]
    for compute in (low_rank_update, low_rank_update_reference):
        got = compute(x, y, updates, torch.tensor([-1, 0, -1], dtype=torch.int32))
        assert got[1].isnan().all()
        assert torch.equal(got[[0, 2]], y[[0, 2]])


def test_products_in_bfloat16_stay_so():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 8, generator=generator).bfloat16() for _ in range(2))
    updates = [update(2, 8, 8, torch.float32, generator)]
    chosen = torch.zeros(2, dtype=torch.int32)
    got = low_rank_update(x, y, updates, chosen)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, low_rank_update(x.float(), y.float(), updates, chosen).bfloat16())
