"""Rotary positions, the packed batch and the MLP, by their defining properties."""

import math

import pytest
import torch

from lmworks.nn.batch import next_token_document, pack
from lmworks.nn.mlp import MLP
from lmworks.nn.rope import inverse_frequencies, llama3_scaled, rotation


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotated_products_depend_on_the_distance_only(interleaved):
    query, key = torch.randn(1, 2, 16, dtype=torch.float64), torch.randn(1, 2, 16, dtype=torch.float64)
    speeds = inverse_frequencies(16, 100.0)

    def score(m, n):
        turned = (
            rotation(torch.tensor([p]), speeds, torch.float64, interleaved=interleaved)(x)
            for x, p in ((query, m), (key, n))
        )
        a, b = turned
        return (a * b).sum(-1)

    torch.testing.assert_close(score(3, 1), score(40, 38), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(score(0, 0), (query * key).sum(-1))
    assert not torch.allclose(score(3, 1), score(3, 2))


def test_llama3_keeps_short_waves_and_slows_long_ones():
    speeds = inverse_frequencies(128, 5e5)
    scaled = llama3_scaled(speeds, 8.0, 1.0, 4.0, 8192)
    waves = 2 * math.pi / speeds
    assert torch.equal(scaled[waves < 8192 / 4], speeds[waves < 8192 / 4])
    torch.testing.assert_close(scaled[waves > 8192], speeds[waves > 8192] / 8)
    assert torch.all(scaled.diff() < 0)


def test_pack_lays_documents_end_to_end():
    batch = pack([next_token_document([5, 6, 7], [0, 0, 1]), next_token_document([8, 9])])
    assert batch.input_ids.tolist() == [5, 6, 8]
    assert batch.targets.tolist() == [6, 7, 9]
    assert batch.loss_weights.tolist() == [0, 1, 1]
    assert batch.positions.tolist() == [0, 1, 0]
    assert batch.cu_seqlens.tolist() == [0, 2, 3]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.num_tokens == batch.to("cpu").num_tokens == 3


def test_pack_refuses_what_is_not_a_document():
    for documents in ([], [([], [], [])], [([1], [1, 2], [1.0])]):
        with pytest.raises(AssertionError):
            pack(documents)
    with pytest.raises(AssertionError, match="at least two tokens"):
        next_token_document([1])


@pytest.mark.parametrize("gated", [True, False])
def test_mlp_is_its_formula(gated):
    mlp, x = MLP(6, 10, "silu", gated=gated, bias=True), torch.randn(3, 6)
    up, silu = mlp.up_proj(x), lambda t: t * torch.sigmoid(t)
    inner = silu(mlp.gate_proj(x)) * up if gated else silu(up)
    torch.testing.assert_close(mlp(x), mlp.down_proj(inner))
