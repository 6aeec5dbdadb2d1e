"""Position codes against what the literature and transformers compute."""

import math

import numpy as np
import pytest
import torch
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from lmworks.nn.positions import (
    AlibiBias,
    LearnedPositionEmbedding,
    RelativePositionBias,
    RelativeSinusoids,
    SinusoidalPositionEmbedding,
)

FAR = torch.tensor([0, 1, 7, 511, 100_003])


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (10, 24), (32, 64), (9, 50), (8, 300)])
def test_buckets_are_those_of_t5(num_buckets, max_distance, bidirectional):
    distance = torch.arange(-400, 401)
    expected = T5Attention._relative_position_bucket(distance, bidirectional, num_buckets, max_distance)
    code = RelativePositionBias(2, num_buckets, max_distance, bidirectional=bidirectional)
    assert torch.equal(code.buckets(distance), expected)


def test_a_bias_depends_on_the_distance_alone():
    code = RelativePositionBias(3, 8, 20, bidirectional=True)
    torch.nn.init.normal_(code.weight)
    bias = code(torch.arange(4), lambda: torch.tensor(0), torch.float32).bias
    near, far = bias(torch.arange(5), torch.arange(7)), bias(torch.arange(5) + 900, torch.arange(7) + 900)
    assert near.shape == (3, 5, 7)
    assert torch.equal(near, far)
    assert not torch.equal(near[:, 1, 3], near[:, 3, 1])


def test_sinusoids_are_those_of_the_first_paper():
    code = SinusoidalPositionEmbedding(6, interleaved=True)
    expected = np.zeros((len(FAR), 6))
    for row, position in enumerate(FAR.tolist()):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            expected[row, 2 * i], expected[row, 2 * i + 1] = math.sin(angle), math.cos(angle)
    np.testing.assert_allclose(code(FAR).numpy(), expected, atol=1e-6)


def test_sinusoids_are_those_of_marian():
    theirs = MarianSinusoidalPositionalEmbedding(600, 10).create_weight()
    ours = SinusoidalPositionEmbedding(10, interleaved=False)(torch.arange(600))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_sinusoids_are_those_of_m2m_100():
    theirs = M2M100SinusoidalPositionalEmbedding(50, 10, padding_idx=1).weights[2:52]
    ours = SinusoidalPositionEmbedding(10, interleaved=False, offset=2, endpoint=True)(torch.arange(50))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_products_of_sinusoids_depend_on_the_distance_alone():
    waves = RelativeSinusoids(8)(torch.arange(200), lambda: torch.tensor(0), torch.float32).sinusoids
    products = waves @ waves.T
    torch.testing.assert_close(products.diagonal(3), products[0, 3].expand(197), atol=1e-5, rtol=0)


def test_learned_positions_begin_after_the_offset():
    code = LearnedPositionEmbedding(5, 3, offset=2)
    torch.nn.init.normal_(code.weight)
    assert code.weight.shape == (7, 3)
    assert torch.equal(code(torch.tensor([0, 4])), code.weight[[2, 6]])


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [(4, [2**-2, 2**-4, 2**-6, 2**-8]), (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]), (1, [2**-8])],
)
def test_alibi_slopes(heads, slopes):
    bias = AlibiBias(heads)(torch.arange(2), lambda: torch.tensor(0), torch.float32).bias
    torch.testing.assert_close(bias(torch.tensor([5]), torch.tensor([2])).flatten(), -3 * torch.tensor(slopes))
