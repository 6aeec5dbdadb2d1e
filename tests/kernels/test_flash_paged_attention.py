"""What FlashAttention is handed, and that a library which fails or disagrees is not used. The library is a double."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from lmworks.core.errors import ConfigError
from lmworks.kernels import flash_paged_attention
from lmworks.kernels.flash_paged_attention import MODULE, flash_attention
from lmworks.kernels.masks import Causal, Full, Window
from lmworks.kernels.native_attention import native_rule
from lmworks.kernels.paged_attention import PagedAttention, paged_attention_reference
from lmworks.kernels.paged_step import PagedSequence, PagedStep
from lmworks.kernels.scores import Scores


def documented(
    q, k_cache, v_cache, *, cache_seqlens, page_table, cu_seqlens_q, max_seqlen_q, softmax_scale, causal, window_size,
    softcap,
):  # fmt: skip
    """`flash_attn_with_kvcache` as its documentation says, aligned to the bottom right."""
    outputs = []
    for i, (count, blocks) in enumerate(zip(cache_seqlens.tolist(), page_table.tolist(), strict=True)):
        rows = q[cu_seqlens_q[i] : cu_seqlens_q[i + 1]]
        assert len(rows) <= max_seqlen_q
        key, value = (x[blocks].flatten(0, 1)[:count] for x in (k_cache, v_cache))
        key, value = (x.repeat_interleave(rows.shape[1] // x.shape[1], 1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", rows, key) * softmax_scale
        if softcap:
            scores = softcap * (scores / softcap).tanh()
        at = torch.arange(len(rows))[:, None] + count - len(rows)
        away = torch.arange(count) - at
        left, right = window_size
        hidden = (away > 0) if causal else torch.zeros_like(away, dtype=torch.bool)
        if left >= 0:
            hidden |= (away < -left) | (away > right)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value))
    return torch.cat(outputs)


@pytest.mark.parametrize(
    "scores", [Scores(0.3), Scores(0.3, Causal() & Window(7)), Scores(0.3, softcap=0.8), Scores(0.3, Full())]
)
def test_it_is_handed_what_it_documents(monkeypatch, scores):
    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(flash_attn_with_kvcache=documented))
    source = 11 if isinstance(scores.mask, Full) else None
    step = PagedStep([PagedSequence((3, 1, 6), 9, 1, source), PagedSequence((5, 0, 2), 4, 6, source)])
    cache, query = torch.randn(2, 2, 7, 4, 16), torch.randn(7, 6, 16)
    got = flash_attention(query, cache, step, native_rule(scores))
    torch.testing.assert_close(got, paged_attention_reference(query, cache, step, scores), atol=1e-5, rtol=1e-5)


def fails(*arguments, **keywords):
    raise TypeError("another version")


@pytest.mark.parametrize("function", [fails, lambda q, *_, **__: q])
def test_a_library_that_fails_or_disagrees_is_not_used(monkeypatch, caplog, function):
    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(flash_attn_with_kvcache=function))
    flash_paged_attention._agrees.cache_clear()
    assert not flash_paged_attention._agrees(torch.device("cpu"), torch.float16)
    assert "FlashAttention 3 is not used" in caplog.text


def test_a_library_that_agrees_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(flash_attn_with_kvcache=documented))
    flash_paged_attention._agrees.cache_clear()
    assert flash_paged_attention._agrees(torch.device("cpu"), torch.float16)


def test_asking_for_it_where_it_cannot_run_says_why():
    step = [PagedSequence((0,), 0, 1)]
    with pytest.raises(ConfigError, match="needs a Hopper GPU"):
        PagedAttention(step, "flash")(torch.randn(1, 2, 8), torch.zeros(2, 2, 1, 4, 8), Scores(1.0))
