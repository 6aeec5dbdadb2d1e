"""XLNet with an order of prediction and with segments, against transformers; its parts against their formulas."""

import pytest
import torch
import transformers

from lmworks.core.errors import ConfigError
from lmworks.kernels.masks import Full
from lmworks.models.families import family_named
from lmworks.models.hub import load_pretrained
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.permuted_context import PermutedContext
from lmworks.nn.positions import RelativeSinusoids
from lmworks.nn.xl_attention import XLAttention
from lmworks.objectives.draws import Draws
from lmworks.objectives.permutation import draw_order

SIZES = {"vocab_size": 61, "d_model": 24, "n_layer": 3, "n_head": 3, "d_inner": 40}
LENGTHS = (9, 2, 14)
IDS = [torch.randint(6, 61, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
BOUNDS = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
POSITIONS = torch.cat([torch.arange(n) for n in LENGTHS])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    torch.manual_seed(0)
    theirs = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**SIZES)).eval()
    for parameter in theirs.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2 + (parameter.data == 1)
    folder = tmp_path_factory.mktemp("xlnet")
    theirs.save_pretrained(folder)
    return theirs, load_pretrained(folder).eval()


def run(model, context, types=None):
    return model(torch.cat(IDS), POSITIONS, context, token_type_ids=types)


def test_segments(pair):
    theirs, ours = pair
    types = [torch.arange(n) * 3 // n for n in LENGTHS]
    logits = ours.logits(run(ours, PackedContext(BOUNDS), torch.cat(types)))
    expected = [theirs(i[None], token_type_ids=t[None]).logits[0] for i, t in zip(IDS, types, strict=True)]
    torch.testing.assert_close(logits, torch.cat(expected), atol=1e-5, rtol=0)
    assert (run(ours, PackedContext(BOUNDS)) - run(ours, PackedContext(BOUNDS), torch.cat(types))).abs().max() > 1e-3


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("predicted", [0.2, 0.5, 1.0])
def test_two_streams_predict_what_transformers_predicts(pair, predicted, typed):
    theirs, ours = pair
    draws = Draws(3, 0)
    ranks = torch.cat([torch.from_numpy(draw_order(n, draws, predicted)) for n in LENGTHS])
    targets = ranks.nonzero().squeeze(1)
    types = torch.cat([torch.arange(n) * 2 // n for n in LENGTHS]) if typed else None
    context = PermutedContext(BOUNDS, ranks=ranks, targets=targets)
    logits = ours.logits(run(ours, context, types))
    expected = []
    for ids, begin in zip(IDS, BOUNDS.tolist(), strict=False):
        own = ranks[begin : begin + len(ids)]
        hidden = own[None, :] >= own[:, None].clamp(min=1)
        where = own.nonzero().squeeze(1)
        mapping = torch.nn.functional.one_hot(where, len(ids)).float()
        segments = None if types is None else types[None, begin : begin + len(ids)]
        out = theirs(ids[None], perm_mask=hidden[None].float(), target_mapping=mapping[None], token_type_ids=segments)
        expected.append(out.logits[0])
    expected = torch.cat(expected)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    theirs.zero_grad()
    ours.zero_grad()
    expected.square().sum().backward()
    logits.square().sum().backward()
    wanted = theirs.transformer.mask_emb.grad.flatten()
    torch.testing.assert_close(
        ours.encoder.target_embedding.grad.flatten(), wanted, rtol=1e-4, atol=1e-4 * wanted.norm()
    )
    wanted = theirs.transformer.layer[0].rel_attn.r.grad.flatten(1).mT
    got = ours.encoder.layers[0].self_attn.r_proj.grad.flatten(0, 1)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * wanted.norm())


def test_a_target_sees_neither_itself_nor_what_comes_later(pair):
    _, ours = pair
    ranks = torch.tensor([0, 2, 0, 1, 3])
    context = PermutedContext(torch.tensor([0, 5], dtype=torch.int32), ranks=ranks, targets=torch.tensor([1, 3, 4]))
    ids = torch.tensor([7, 8, 9, 10, 11])

    def predict(place):
        changed = ids.clone()
        changed[place] = 50
        return ours(changed, torch.arange(5), context)

    base = ours(ids, torch.arange(5), context)
    influenced = [[bool((predict(place) - base)[t].abs().max() > 1e-6) for place in range(5)] for t in range(3)]
    assert influenced == [
        [True, False, True, True, False],  # rank 2 sees rank 1
        [True, False, True, False, False],  # rank 1 sees what is given
        [True, True, True, True, False],  # rank 3 sees all but itself
    ]


def test_scores_are_the_formula_of_the_paper():
    torch.manual_seed(0)
    layer = XLAttention(0, 8, 2, 4, mask=Full())
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    positions, segments, x = torch.arange(5), torch.tensor([0, 0, 1, 2, 2]), torch.randn(5, 8)
    signal = RelativeSinusoids(8)(positions, lambda: positions, torch.float32)
    seen = []

    class Recorder(PackedContext):
        def attend(self, layer, query, key, value, scores):
            seen.append(torch.einsum("qhd,khd->hqk", query, key))
            return value

    layer(x, type(signal)(sinusoids=signal.sinusoids, segments=segments), Recorder(torch.tensor([0, 5])))
    query, key = (p(x).unflatten(-1, (2, 4)) for p in (layer.q_proj, layer.k_proj))
    speeds = 10_000.0 ** (-torch.arange(0, 8, 2) / 8)
    angles = (positions[:, None] - positions[None, :])[..., None] * speeds
    distances = torch.einsum("qke,hde->qkhd", torch.cat([angles.sin(), angles.cos()], -1), layer.r_proj)
    other = (segments[:, None] != segments[None, :]).long()
    expected = (
        torch.einsum("qhd,khd->hqk", query + layer.r_w_bias, key)
        + torch.einsum("qhd,qkhd->hqk", query + layer.r_r_bias, distances)
        + torch.einsum("qhd,qkhd->hqk", query + layer.r_s_bias, layer.seg_embed[other])
    )
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attn_type": "uni"}, "attn_type"), ({"bi_data": True}, "bi_data"), ({"clamp_len": 8}, "clamp_len"),
        ({"summary_type": "mean"}, "summary_type"),
    ],
)  # fmt: skip
def test_variants_that_are_not_there_are_named(changes, named):
    with pytest.raises(ConfigError, match=named):
        family_named("xlnet").config_from_hf({**SIZES, **changes})


def test_attention_by_distance_needs_its_positions():
    config = family_named("xlnet").config_from_hf(SIZES).to_dict()
    with pytest.raises(ConfigError, match="relative_sinusoidal"):
        type(family_named("xlnet").config_from_hf(SIZES)).parse({**config, "positions": {"kind": "rope"}})
