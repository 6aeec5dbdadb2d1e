"""Masks as an algebra: each says what its name says, combinations are logic, what is known of them is true."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.kernels.masks import (
    BlockSparse,
    Causal,
    Document,
    First,
    Full,
    Mask,
    Padding,
    Places,
    Prefix,
    Window,
    self_attention_mask,
)

PLACES = Places(torch.arange(12)[:, None], torch.arange(12)[None, :])
LEAVES = st.one_of(
    st.just(Full()), st.just(Causal()), st.builds(Window, st.integers(1, 12)), st.builds(First, st.integers(0, 4))
)


def masks() -> st.SearchStrategy[Mask]:
    def larger(parts: st.SearchStrategy[Mask]) -> st.SearchStrategy[Mask]:
        return st.one_of(
            st.tuples(parts, parts).map(lambda p: p[0] & p[1]),
            st.tuples(parts, parts).map(lambda p: p[0] | p[1]),
            parts.map(lambda p: ~p),
        )

    return st.recursive(LEAVES, larger, max_leaves=5)


@settings(deadline=None)
@given(one=masks(), other=masks())
def test_combinations_are_logic(one: Mask, other: Mask):
    assert torch.equal((one & other)(PLACES), one(PLACES) & other(PLACES))
    assert torch.equal((one | other)(PLACES), one(PLACES) | other(PLACES))
    assert torch.equal((~(one | other))(PLACES), (~one & ~other)(PLACES))


@settings(deadline=None)
@given(mask=masks())
def test_what_a_mask_promises_to_the_kernels_holds(mask: Mask):
    seen = mask(PLACES)
    assert seen.shape == (12, 12)
    if mask.causal:
        assert not seen.triu(1).any()
    if mask.reach is not None:
        assert not seen.tril(-mask.reach).any()


def test_leaves():
    assert Window(3)(PLACES)[5].nonzero().flatten().tolist() == [3, 4, 5, 6, 7]
    assert self_attention_mask(causal=True, window=3)(PLACES)[5].nonzero().flatten().tolist() == [3, 4, 5]
    assert First(2)(PLACES)[5].nonzero().flatten().tolist() == [0, 1]
    assert (Causal() | Prefix())(Places(PLACES.query, PLACES.key, prefix_length=torch.tensor([[4]])))[1].sum() == 4
    number = torch.tensor([0] * 5 + [1] * 7)
    documents = Places(PLACES.query, PLACES.key, number[:, None], number[None, :])
    assert Document()(documents)[6].nonzero().flatten().tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert Padding()(Places(PLACES.query, PLACES.key, document_length=torch.tensor([[9]])))[0].sum() == 9
    layout = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    assert BlockSparse(layout, 4)(PLACES)[6].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
