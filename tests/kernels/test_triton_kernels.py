"""Each Triton kernel agrees with its formula: in Triton's interpreter, or on the GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from lmworks.kernels.gated_activation import ACTIVATIONS
from lmworks.kernels.masks import Causal, Full, Window
from lmworks.kernels.native_attention import native_rule
from lmworks.kernels.paged_attention import PagedWrite, paged_attention_reference
from lmworks.kernels.paged_step import PagedSequence, PagedStep
from lmworks.kernels.quantized_matmul import pack_nibbles, quantized_matmul_reference
from lmworks.kernels.rms_norm import rms_norm_reference
from lmworks.kernels.scores import DistanceBias, Scores
from lmworks.nn.rope import inverse_frequencies, rotation

pytest.importorskip("triton", reason="Triton has no wheel for this system")

from lmworks.kernels.triton import gated_activation, paged_attention, quantized_matmul, rms_norm, rotary

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOSE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DECODING, PROMPTS, GUESSES = (
    [(5, 1), (300, 1), (0, 1), (600, 1)],
    [(0, 70), (37, 1), (20, 30)],
    [(5, 5), (330, 3), (2, 1)],
)
RULES = {
    "causal": lambda heads: Scores(0.3),
    "window": lambda heads: Scores(0.3, Causal() & Window(40)),
    "window of one": lambda heads: Scores(0.3, Causal() & Window(1)),
    "soft cap": lambda heads: Scores(0.3, softcap=0.7),
    "sinks": lambda heads: Scores(0.3, sinks=torch.linspace(-2, 2, heads)),
    "alibi": lambda heads: Scores(0.3, bias=DistanceBias(torch.linspace(0.1, 0.9, heads))),
    "all": lambda heads: Scores(
        0.3, Causal() & Window(290), 1.5, DistanceBias(torch.linspace(0, 0.1, heads)), torch.linspace(-1, 3, heads)
    ),
}


def scattered(chunks, block_size, source=None):
    """A step whose blocks lie in random order, and how many blocks there are."""
    sizes = [-(-max(start + length, source or 0) // block_size) for start, length in chunks]
    order = torch.randperm(sum(sizes) + 3).tolist()
    tables = [[order.pop() for _ in range(n)] for n in sizes]
    return PagedStep([PagedSequence(t, *c, source) for t, c in zip(tables, chunks, strict=True)]), sum(sizes) + 3


def attend(query, cache, step, scores):
    rule = native_rule(scores)
    shares = step.causal_shares if rule.causal else step.full_shares
    tensors = (None if x is None else x.to(DEVICE) for x in (rule.sinks, rule.slopes))
    return paged_attention.paged_attention(
        query.to(DEVICE), cache.to(DEVICE), step.block_tables.to(DEVICE), shares.to(DEVICE), rule.scale, rule.softcap,
        rule.window, *tensors,
    ).cpu()  # fmt: skip


def check(chunks, kv_heads, groups, width, block_size, scores, dtype=torch.float32, source=None):
    step, blocks = scattered(chunks, block_size, source)
    cache = torch.randn(2, kv_heads, blocks, block_size, width).to(dtype)
    query = torch.randn(sum(length for _, length in chunks), kv_heads * groups, width).to(dtype)
    got = attend(query, cache, step, scores)
    assert (got.dtype, got.shape) == (dtype, query.shape)
    expected = paged_attention_reference(query, cache, step, scores)
    torch.testing.assert_close(got.float(), expected.float(), atol=CLOSE[dtype], rtol=CLOSE[dtype])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("chunks", [DECODING, PROMPTS, GUESSES], ids=["decoding", "prompts", "guesses"])
def test_attention_of_every_rule(rule, chunks):
    check(chunks, 2, 3, 16, 16, RULES[rule](6))


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(
    ("width", "groups", "block_size"), [(64, 1, 16), (80, 4, 8), (128, 8, 32), (256, 2, 5), (24, 7, 1)]
)
def test_attention_of_every_shape(dtype, width, groups, block_size):
    check([(40, 1), (3, 1)], 1, groups, width, block_size, Scores(width**-0.5), dtype)
    check([(4, 20), (9, 1)], 1, groups, width, block_size, Scores(width**-0.5), dtype)


@pytest.mark.parametrize("queries", [[(5, 1), (9, 1)], [(5, 3), (9, 40)]])
def test_a_source_is_seen_whole(queries):
    check(queries, 2, 2, 16, 8, Scores(0.3, Full()), source=300)


def test_a_row_is_the_same_bits_in_any_batch_and_under_any_table():
    scores = RULES["sinks"](4)
    step, blocks = scattered([(700, 1), (20, 1), (300, 1)], 16)
    cache, query = torch.randn(2, 2, blocks, 16, 32), torch.randn(3, 4, 32)
    together = attend(query, cache, step, scores)
    for i, sequence in enumerate(step):
        assert torch.equal(attend(query[i : i + 1], cache, PagedStep([sequence]), scores)[0], together[i])
        longer = PagedSequence((*sequence.block_table, *[0] * 90), sequence.start, 1)
        assert torch.equal(attend(query[i : i + 1], cache, PagedStep([longer]), scores)[0], together[i])


def test_attention_reads_a_cache_and_queries_of_any_strides():
    step, blocks = scattered(PROMPTS, 16)
    cache = torch.randn(2, blocks, 16, 2, 16).permute(0, 3, 1, 2, 4)
    query = torch.randn(101, 6, 48)[..., 16:32]
    expected = paged_attention_reference(query, cache, step, Scores(0.3))
    torch.testing.assert_close(attend(query, cache, step, Scores(0.3)), expected, atol=3e-6, rtol=3e-6)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("chunks", [DECODING, PROMPTS], ids=["decoding", "prompts"])
def test_new_keys_and_values_land_in_their_blocks(dtype, chunks):
    step, blocks = scattered(chunks, 8)
    key, value = torch.randn(2, sum(n for _, n in chunks), 2, 24).to(dtype)
    cache = torch.zeros(2, 2, blocks, 8, 24, dtype=dtype)
    expected = cache.clone()
    PagedWrite(step, torch.device("cpu"), "batched")(expected, key, value)
    ours = cache.to(DEVICE)
    wide = torch.cat([value, key], -1).to(DEVICE)
    paged_attention.write_cache(
        ours, wide[..., 24:], wide[..., :24], step.block_tables.to(DEVICE), step.causal_shares.to(DEVICE)
    )
    assert torch.equal(ours.cpu(), expected)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", [(1, 1), (5, 100), (2, 3, 64), (3, 5000), (0, 8)])
def test_norm(dtype, shape):
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    got = rms_norm.rms_norm(x.to(DEVICE), weight.to(DEVICE), 1e-5).cpu()
    torch.testing.assert_close(got, rms_norm_reference(x, weight, 1e-5), atol=CLOSE[dtype], rtol=CLOSE[dtype])


def test_norm_of_rows_that_lie_apart_takes_the_wider_type():
    x, weight = torch.randn(4, 3, 64).bfloat16()[:, 1, ::2], torch.randn(32)
    got = rms_norm.rms_norm(x.to(DEVICE), weight.to(DEVICE), 1e-5).cpu()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, rms_norm_reference(x, weight, 1e-5), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gate(dtype, activation):
    gate, up = (3 * torch.randn(2, 5, 500)).to(dtype)
    gate[0, 0], gate[0, 1] = 40, -40
    got = gated_activation.gated(gate.to(DEVICE), up.to(DEVICE), activation).cpu()
    expected = ACTIVATIONS[activation](gate.float()) * up.float()
    torch.testing.assert_close(got.float(), expected, atol=CLOSE[dtype], rtol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("width", "turned"), [(64, 64), (80, 32), (20, 6)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation(dtype, width, turned, interleaved):
    positions = torch.tensor([0, 7, 4000])
    x = torch.randn(3, 5, 2 * width).to(dtype)[..., width:]
    turns = rotation(positions, inverse_frequencies(turned, 10_000.0), dtype, interleaved=interleaved)
    got = rotary.turn(x.to(DEVICE), turns.cos.to(DEVICE), turns.sin.to(DEVICE), interleaved).cpu()
    torch.testing.assert_close(got, turns(x), atol=2 * CLOSE[dtype], rtol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("columns", "group_size"), [(256, 0), (100, 0), (129, 0), (256, 32), (200, 64), (384, 128), (300, 256)]
)
@pytest.mark.parametrize("zero", [False, True])
def test_products_with_weights_on_a_grid(dtype, bits, columns, group_size, zero):
    outputs, groups = 37, -(-columns // group_size) if group_size else 1
    values = torch.randint(-127, 128, (outputs, columns)) if bits == 8 else torch.randint(0, 16, (outputs, columns))
    stored = values.to(torch.int8) if bits == 8 else pack_nibbles(values.to(torch.uint8))
    scale = torch.rand(outputs, groups) / (100 if bits == 8 else 8)
    middle = torch.randint(0, 16, (outputs, groups)).float() if zero else None
    for rows in (3, 20):
        x = torch.randn(rows, columns).to(dtype)
        expected = quantized_matmul_reference(x.double(), stored, scale.double(), middle, group_size)
        got = quantized_matmul.quantized_matmul(
            x.to(DEVICE), stored.to(DEVICE), scale.to(DEVICE), None if middle is None else middle.to(DEVICE), group_size
        ).cpu()
        assert got.dtype == dtype
        difference = (got.double() - expected).norm() / expected.norm()
        assert difference < {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}[dtype]


@pytest.mark.parametrize("bits", [8, 4])
def test_the_product_is_one_operation_that_compilers_know(bits):
    stored = torch.zeros(8, 64 if bits == 8 else 32, dtype=torch.int8 if bits == 8 else torch.uint8)
    arguments = torch.randn(3, 64), stored, torch.rand(8, 2), None, 32
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.lmworks.quantized_matmul.default, arguments, test_utils=checks)
