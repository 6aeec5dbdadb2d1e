"""Packed products agree with the formula at every level of instructions, and a row never feels its neighbors."""

import itertools
import shutil
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lmworks.core.errors import ConfigError
from lmworks.kernels import packed_matmul as kernel
from lmworks.kernels.native import library as native
from lmworks.kernels.native.memory import ALIGNMENT, SLAB, release_rest, weight_memory
from lmworks.kernels.packed_matmul import (
    WeightKind,
    pack_grid,
    pack_weight,
    packed_matmul,
    packed_matmul_reference,
    quantize_activations,
)

LEVELS = [
    pytest.param(
        level, marks=pytest.mark.skipif(not needed <= native.processor_features(), reason="not this processor")
    )
    for level, needed in native.NEEDED.items()
]
TOLERANCE = 2e-5
"""Of float sums, relative to the largest result."""

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
pytestmark = needs_compiler


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    """The products as compiled for one level."""
    monkeypatch.setenv("LMWORKS_NATIVE_ISA", request.param)
    native.library.cache_clear()
    kernel._native.cache_clear()
    yield request.param
    native.library.cache_clear()
    kernel._native.cache_clear()


class Case:
    """A random weight with all that describes it, and the product as the formula has it."""

    def __init__(self, kind, out, columns, group=0, *, zeros=False, half=True, bias=True):
        generator = torch.Generator().manual_seed(out * 1009 + columns)
        self.columns, self.group, self.zero, self.scale = columns, group, None, None
        self.bias = torch.randn(out, generator=generator) if bias else None
        if kind in (WeightKind.F32, WeightKind.BF16):
            self.values = torch.randn(out, columns, generator=generator)
            self.values = self.values.to(torch.float32 if kind is WeightKind.F32 else torch.bfloat16)
            self.packed = pack_weight(self.values, self.bias)
        else:
            bits = 4 if kind is WeightKind.W4G else 8
            groups = -(-columns // group) if group else 1
            self.scale = torch.rand(out, groups, generator=generator) / 100 - 0.002  # some below zero
            self.scale = self.scale.half().float() if half else self.scale
            low, high, dtype = (0, 16, torch.uint8) if bits == 4 else (-128, 128, torch.int8)
            self.values = torch.randint(low, high, (out, columns), generator=generator, dtype=dtype)
            if zeros:
                self.zero = torch.randint(0, 17, (out, groups), generator=generator) + (0 if half else 0.3)
            self.packed = pack_grid(self.values, self.scale, self.zero, bits, group, self.bias)
        assert self.packed.kind is kind

    def rows(self, count, seed=0):
        return torch.randn(count, self.columns, generator=torch.Generator().manual_seed(seed))

    def reference(self, x):
        return packed_matmul_reference(x, self.values, self.scale, self.zero, self.group, self.bias)

    def check(self, x):
        expected = self.reference(x)
        result = packed_matmul(x, self.packed)
        assert result.shape == expected.shape
        limit = TOLERANCE * expected.abs().max().item()
        torch.testing.assert_close(result, expected, atol=limit, rtol=0)
        return result


KINDS = {
    "f32": (WeightKind.F32, {}),
    "bf16": (WeightKind.BF16, {}),
    "w8": (WeightKind.W8, {}),
    "w8g": (WeightKind.W8G, {"group": 32}),
    "w8g-float-scales": (WeightKind.W8G, {"group": 64, "half": False}),
    "w4g": (WeightKind.W4G, {"group": 32}),
    "w4g-zeros": (WeightKind.W4G, {"group": 32, "zeros": True}),
    "w4g-fractional-zeros": (WeightKind.W4G, {"group": 128, "zeros": True, "half": False}),
    "w4g-whole-rows": (WeightKind.W4G, {"group": 0}),
}
every_kind = pytest.mark.parametrize("name", KINDS)


def case(name, out, columns, **changes):
    kind, options = KINDS[name]
    return Case(kind, out, columns, **{**options, **changes})


@every_kind
@pytest.mark.parametrize(("out", "columns"), [(64, 64), (70, 33), (1, 1), (200, 130), (129, 577), (64, 7)])
def test_every_level_agrees_with_the_formula(level, name, out, columns):
    weight = case(name, out, columns)
    weight.check(weight.rows(1))
    weight.check(weight.rows(29))


@every_kind
def test_a_row_is_the_same_bits_in_every_company(level, name):
    weight = case(name, 130, 196)
    rows = weight.rows(130)
    alone = torch.cat([packed_matmul(row[None], weight.packed) for row in rows])
    for count in [*range(2, 27), 60, 61, 121, 130]:
        for first in {0, (130 - count) // 2, 130 - count}:
            assert torch.equal(packed_matmul(rows[first : first + count], weight.packed), alone[first : first + count])


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(list(KINDS)), rows=st.integers(0, 40), out=st.integers(1, 150), columns=st.integers(1, 150),
    bias=st.booleans(),
)  # fmt: skip
def test_any_shape(name, rows, out, columns, bias):
    weight = case(name, out, columns, bias=bias)
    if rows:
        weight.check(weight.rows(rows))
    else:
        assert packed_matmul(weight.rows(0), weight.packed).shape == (0, out)


@every_kind
def test_activations_of_any_leading_shape_type_and_stride(name):
    weight = case(name, 70, 64)
    rows = weight.rows(6)
    flat = weight.check(rows)
    assert torch.equal(packed_matmul(rows.view(2, 3, 64), weight.packed), flat.view(2, 3, 70))
    assert torch.equal(packed_matmul(rows[0], weight.packed), flat[0])
    assert torch.equal(packed_matmul(rows.t().contiguous().t(), weight.packed), flat)
    narrow = packed_matmul(rows.bfloat16(), weight.packed)
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow, packed_matmul(rows.bfloat16().float(), weight.packed).bfloat16())


def test_integer_sums_are_exact():
    """Activations and weights at the ends of their range, where sums of 16 bits would overflow."""
    columns = 4096
    for value in (-128, 127):
        values = torch.full((64, columns), value, dtype=torch.int8)
        weight = pack_grid(values, torch.ones(64, 1), None, 8, 0)
        x = torch.full((1, columns), -127.0)
        assert torch.equal(packed_matmul(x, weight), torch.full((1, 64), -127.0 * value * columns))


def test_quantized_products_are_near_the_exact_one():
    """What a user feels: 8 bits within a percent of float, 4 bits within ten."""
    weight, x = torch.randn(96, 512), torch.randn(5, 512)
    exact = x @ weight.t()
    grouped = weight.view(96, 16, 32)
    scale = grouped.abs().amax(-1) / 127
    eight = pack_grid((grouped / scale[..., None]).round().view(96, 512), scale, None, 8, 32)
    low, high = grouped.amin(-1), grouped.amax(-1)
    step = (high - low) / 15
    four = ((grouped - low[..., None]) / step[..., None]).round().view(96, 512)
    for packed, bound in ((eight, 0.01), (pack_grid(four, step, -low / step, 4, 32), 0.1)):
        error = (packed_matmul(x, packed) - exact).norm() / exact.norm()
        assert error < bound


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@every_kind
def test_a_broken_row_is_seen_and_breaks_no_other(level, name, bad):
    weight = case(name, 64, 96)
    rows = weight.rows(3)
    whole = packed_matmul(rows, weight.packed)
    rows[1, 40] = bad
    result = packed_matmul(rows, weight.packed)
    assert not result[1].isfinite().any()
    assert torch.equal(result[[0, 2]], whole[[0, 2]])


@every_kind
def test_zeros_and_vanishing_activations_give_the_bias(name):
    weight = case(name, 40, 64)
    for x in (torch.zeros(2, 64), torch.full((2, 64), 1e-38)):
        torch.testing.assert_close(packed_matmul(x, weight.packed), weight.bias.expand(2, -1), atol=1e-30, rtol=1e-6)


def test_activations_are_rounded_to_the_nearest_of_their_range():
    values, scale = quantize_activations(torch.tensor([[127.0, -2.5, 3.5, 0.4], [0.0, 0.0, 0.0, 0.0]]), 2)
    assert values.shape == (2, 2, 2)
    assert values[0, 0].tolist() == [127, -2]  # ties to even: -2.5
    assert values[0, 1].tolist() == [127, 15]
    assert scale.flatten().tolist() == pytest.approx([1.0, 3.5 / 127, 0.0, 0.0])


def test_scales_that_float16_holds_take_half_the_memory():
    groups = 4096 // 32
    wide, narrow = (case("w4g", 64, 4096, half=half).packed.packed.numel() for half in (False, True))
    assert wide - narrow == 64 * groups * 2
    symmetric = case("w4g", 64, 4096)
    assert symmetric.packed.packed.numel() == 64 + 64 * groups * (16 + 2)  # as much as GGUF's Q4_0
    eights = pack_grid(symmetric.values, symmetric.scale, torch.full((64, groups), 8.0), 4, 32)
    assert eights.packed.numel() == symmetric.packed.packed.numel()


def test_many_callers_at_once():
    weight = case("w8", 128, 64)
    inputs = [weight.rows(count, seed=count) for count in (1, 5, 40, 3)]
    expected = [packed_matmul(x, weight.packed) for x in inputs]
    results: list[bool] = []

    def call(x, wanted):
        results.append(all(torch.equal(packed_matmul(x, weight.packed), wanted) for _ in range(50)))

    threads = [threading.Thread(target=call, args=pair) for pair in zip(inputs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


@every_kind
def test_one_operation_for_torch(name):
    weight = case(name, 70, 64).packed
    x = torch.randn(3, 64)
    arguments = (x, weight.packed, weight.bias, weight.kind, 70, 64, weight.group_size)
    torch.library.opcheck(torch.ops.lmworks.packed_matmul, arguments, test_utils=("test_schema", "test_faketensor"))
    nodes = []

    def backend(graph, _):
        nodes.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch.compiler.reset()  # shapes and groups of other cases are none of this one's
    compiled = torch.compile(lambda y: packed_matmul(y, weight) + 1, backend=backend, fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), packed_matmul(x, weight) + 1)
    assert torch.ops.lmworks.packed_matmul in nodes or torch.ops.lmworks.packed_matmul.default in nodes


@every_kind
def test_without_a_compiler_pytorch_takes_over(monkeypatch, name):
    monkeypatch.setattr(kernel, "_native", lambda: None)
    weight = case(name, 70, 100)
    weight.check(weight.rows(9))
    weight.check(weight.rows(1))
    assert packed_matmul(weight.rows(6).view(2, 3, 100).bfloat16(), weight.packed).shape == (2, 3, 70)


def test_reference_is_the_formula():
    weight = case("w4g-zeros", 6, 64)
    dense = (weight.values - weight.zero.repeat_interleave(32, 1)) * weight.scale.repeat_interleave(32, 1)
    x = torch.zeros(1, 64)
    x[0, 3], x[0, 40] = 1.0, -1.0  # alone in their groups: rounding keeps them
    torch.testing.assert_close(weight.reference(x), F.linear(x, dense, weight.bias))


@pytest.mark.parametrize(
    ("bits", "group", "zero", "words"),
    [
        (8, 48, False, "groups of 48"),
        (4, 16, False, "groups of 16"),
        (8, 32, True, "zero points"),
        (3, 32, False, "3 bits"),
    ],
)
def test_grids_that_cannot_be_packed(bits, group, zero, words):
    groups = 96 // group
    with pytest.raises(ConfigError, match=words):
        pack_grid(
            torch.zeros(4, 96, dtype=torch.int8), torch.ones(4, groups), torch.zeros(4, groups) if zero else None,
            bits, group,
        )  # fmt: skip


def test_wrong_width_is_refused():
    with pytest.raises(ValueError, match="65 features do not fit a weight of 64"):
        packed_matmul(torch.zeros(1, 65), case("f32", 8, 64).packed)


def test_memory_that_inference_asked_for_can_be_written_elsewhere():
    release_rest()
    with torch.inference_mode():
        first = weight_memory(64)
    second = weight_memory(64)
    assert not first.is_inference()
    assert second.fill_(7).sum() == 7 * 64


def test_weights_lie_apart_on_cache_lines():
    pieces = [weight_memory(size) for size in (1, 64, 100, SLAB // 2, 5, SLAB * 2)]
    spans = sorted((piece.data_ptr(), piece.data_ptr() + piece.numel()) for piece in pieces)
    assert all(piece.data_ptr() % ALIGNMENT == 0 for piece in pieces)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    for index, piece in enumerate(pieces[:-1]):
        piece.fill_(index)
    assert [int(piece[-1]) for piece in pieces[:-1]] == [0, 1, 2, 3, 4]
