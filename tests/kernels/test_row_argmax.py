"""Greedy choices: the formula, whatever the shape, the ties and what is not a number."""

import pytest
import torch

from lmworks.kernels.row_argmax import row_argmax, row_argmax_reference


@pytest.mark.parametrize("columns", [1, 7, 16, 17, 1023, 1024, 1025, 49152])
def test_it_is_the_formula(columns):
    x = torch.randn(9, columns, generator=torch.Generator().manual_seed(columns))
    assert row_argmax(x).tolist() == row_argmax_reference(x).tolist() == x.argmax(-1).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", [0, 15, 16, 2999, 3000])
def test_a_row_that_is_no_number_is_told_and_no_other(bad, column):
    x = torch.randn(3, 3001)
    x[1, column] = bad
    expected = x.argmax(-1).tolist()
    assert row_argmax(x).tolist() == [expected[0], -1, expected[2]] == row_argmax_reference(x).tolist()


def test_minus_infinity_is_a_number_but_no_choice():
    x = torch.full((2, 40), -torch.inf)
    x[0, 33] = -5.0
    assert row_argmax(x).tolist() == [33, -1] == row_argmax_reference(x).tolist()


def test_the_first_of_equals_wins_and_signs_do_not_matter():
    x = torch.zeros(3, 5000)
    x[1, [1500, 20, 4999]] = 1.0
    x[2] = torch.finfo(torch.float32).min
    assert row_argmax(x).tolist() == [0, 20, 0]


def test_rows_may_lie_apart():
    x = torch.randn(6, 400)
    assert row_argmax(x[::2, :300]).tolist() == x[::2, :300].argmax(-1).tolist()
    assert row_argmax(x[:0]).tolist() == []
