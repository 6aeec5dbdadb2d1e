"""Every path of the product with 8 or 4 bits agrees with the formula."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import ConfigError
from lmworks.kernels import quantized_matmul as kernel
from lmworks.kernels.quantized_matmul import FORCE_VARIABLE, choose_path, quantized_matmul, quantized_matmul_reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}


@pytest.fixture(autouse=True)
def unforced(monkeypatch):
    monkeypatch.delenv(FORCE_VARIABLE, raising=False)


def case(rows, out, columns, dtype):
    generator = torch.Generator().manual_seed(rows * 31 + out)
    x = torch.randn(rows, columns, generator=generator)
    weight = torch.randint(-127, 128, (out, columns), dtype=torch.int8, generator=generator)
    return x.to(dtype), weight, torch.rand(out, 1, generator=generator).to(dtype) / 100


@settings(deadline=None, max_examples=60)
@given(
    rows=st.sampled_from([0, 1, 3, 16, 17, 40]), out=st.integers(1, 70),
    columns=st.integers(1, 70) | st.sampled_from([16, 48, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_chosen_path_agrees_with_the_formula(rows, out, columns, dtype):
    x, weight, scale = case(rows, out, columns, dtype)
    exact = quantized_matmul_reference(x.double(), weight, scale.double())
    result = quantized_matmul(x, weight, scale)
    assert result.dtype == dtype
    assert result.shape == (rows, out)
    torch.testing.assert_close(result.double(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("path", kernel.PATHS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_forced_paths_agree(monkeypatch, path, dtype):
    monkeypatch.setenv(FORCE_VARIABLE, path)
    x, weight, scale = case(5, 33, 48, dtype)
    assert choose_path(x) == path
    expected = quantized_matmul_reference(x.double(), weight, scale.double())
    result = quantized_matmul(x, weight, scale)
    torch.testing.assert_close(result.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("columns", [1, 5, 12])
@pytest.mark.parametrize("group_size", [0, 1, 4])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("with_zero", [False, True])
def test_groups_and_zero_points_number_by_number(columns, group_size, bits, with_zero):
    generator = torch.Generator().manual_seed(columns)
    low, high = (0, 16) if bits == 4 else (-128, 128)
    values = torch.randint(low, high, (3, columns), generator=generator)
    groups = -(-columns // group_size) if group_size else 1
    scale, zero = torch.randn(2, 3, groups, generator=generator).unbind()
    expected = torch.empty(3, columns)
    for i in range(3):
        for j in range(columns):
            g = j // group_size if group_size else 0
            middle = zero[i, g] if with_zero else (8 if bits == 4 else 0)
            expected[i, j] = (values[i, j] - middle) * scale[i, g]
    stored = kernel.pack_nibbles(values.to(torch.uint8)) if bits == 4 else values.to(torch.int8)
    result = quantized_matmul(torch.eye(columns), stored, scale, zero if with_zero else None, group_size)
    torch.testing.assert_close(result.T, expected)


def test_any_leading_shape():
    x, weight, scale = case(6, 8, 16, torch.bfloat16)
    flat = quantized_matmul(x, weight, scale)
    assert torch.equal(quantized_matmul(x.view(2, 3, 16), weight, scale), flat.view(2, 3, 8))
    assert torch.equal(quantized_matmul(x[0], weight, scale), flat[0])


def test_the_fast_path_is_for_few_bfloat16_rows_without_gradient():
    assert choose_path(torch.zeros(1, 16, dtype=torch.bfloat16)) == "int8pack"
    assert choose_path(torch.zeros(17, 16, dtype=torch.bfloat16)) == "dequantize"
    assert choose_path(torch.zeros(1, 8)) == "dequantize"
    assert choose_path(torch.zeros(1, 24, dtype=torch.bfloat16)) == "dequantize"  # not a multiple of 16
    tracked = torch.zeros(1, 16, dtype=torch.bfloat16, requires_grad=True)
    assert choose_path(tracked) == "dequantize"
    with torch.no_grad():
        assert choose_path(tracked) == "int8pack"


def test_gradient_reaches_the_activations():
    x, weight, scale = case(3, 8, 16, torch.float32)
    x.requires_grad_()
    quantized_matmul(x, weight, scale).sum().backward()
    torch.testing.assert_close(x.grad, (weight * scale).sum(0).expand(3, 16))


def test_decisions_are_logged_once(caplog):
    kernel._log.cache_clear()
    with caplog.at_level(logging.INFO, logger=kernel.__name__):
        for _ in range(3):
            choose_path(torch.zeros(1, 8))
    assert len(caplog.records) == 1
    assert "dequantize for torch.float32 on cpu" in caplog.text


def test_unknown_forced_path(monkeypatch):
    monkeypatch.setenv(FORCE_VARIABLE, "int8_pack")
    with pytest.raises(ConfigError, match="did you mean 'int8pack'"):
        choose_path(torch.zeros(1, 8))
    monkeypatch.setenv(FORCE_VARIABLE, "int8pack")
    with pytest.raises(ConfigError, match="a multiple of 16 columns, not 8"):
        choose_path(torch.zeros(1, 8))
    with pytest.raises(ConfigError, match="not a grid of groups"):
        choose_path(torch.zeros(1, 16), plain=False)
