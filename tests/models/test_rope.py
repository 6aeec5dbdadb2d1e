"""Rotary positions: every scaling is the reference's, and a document's length is nobody else's business."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lmworks.core.errors import ConfigError
from lmworks.models.build import build_model
from lmworks.models.families import family_named
from lmworks.models.position_codes import POSITION_CODES
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.rope import inverse_frequencies, rotation

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.2, 1.4, 2.0],
    "long_factor": [1.5, 3.0, 5.0, 9.0], "original_max_position_embeddings": 32,
}  # fmt: skip
FACTORS = st.floats(1.0, 40.0)
CONTEXTS = st.integers(16, 8192)


def settings_of(draw, kind, dims):
    values = {"rope_type": kind, "rope_theta": draw(st.sampled_from([100.0, 1e4, 5e5, 1e6]))}
    if kind in ("linear", "dynamic", "llama3", "yarn"):
        values["factor"] = draw(FACTORS)
    if kind in ("llama3", "yarn", "longrope"):
        values["original_max_position_embeddings"] = draw(CONTEXTS)
    if kind == "llama3":
        values["low_freq_factor"] = draw(st.floats(0.5, 2.0))
        values["high_freq_factor"] = values["low_freq_factor"] + draw(st.floats(0.1, 8.0))
    if kind == "yarn":
        optional = {
            "beta_fast": st.floats(8.0, 64.0), "beta_slow": st.floats(0.25, 4.0), "truncate": st.booleans(),
            "attention_factor": st.floats(0.5, 2.0),
        }  # fmt: skip
        values |= {k: draw(v) for k, v in optional.items() if draw(st.booleans())}
        if draw(st.booleans()):
            values |= {"mscale": draw(st.floats(0.1, 1.5)), "mscale_all_dim": draw(st.floats(0.0, 1.5))}
    if kind == "longrope":
        divisors = st.lists(st.floats(1.0, 60.0), min_size=dims // 2, max_size=dims // 2)
        values |= {"short_factor": draw(divisors), "long_factor": draw(divisors)}
        values |= {
            k: draw(v) for k, v in {"factor": FACTORS, "attention_factor": FACTORS}.items() if draw(st.booleans())
        }
    return values


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "yarn", "longrope"])
@settings(max_examples=100, deadline=None)
@given(data=st.data(), head_dim=st.sampled_from([4, 6, 8, 20, 64]), length=st.integers(1, 20_000))
def test_speeds_are_the_references(kind, data, head_dim, length):
    values = settings_of(data.draw, kind, head_dim)
    hf = {**SIZES, "head_dim": head_dim, "max_position_embeddings": 4096, "rope_parameters": values}
    theirs, factor = ROPE_INIT_FUNCTIONS[kind](LlamaConfig(**hf), seq_len=torch.tensor(length))
    config = family_named("llama").config_from_hf(hf)
    code = POSITION_CODES["rope"](config, config.decoder, config.positions, config.decoder.attention)
    signal = code(torch.tensor([0, 1]), lambda: torch.full((2,), length), torch.float64).rotation
    ours_factor, cosines = signal.cos[0, 0, 0].item(), signal.cos[1, 0, : head_dim // 2]
    assert math.isclose(ours_factor, factor, rel_tol=1e-6)
    sines = signal.sin[1, 0, : head_dim // 2]
    torch.testing.assert_close(cosines, (theirs.cos() * factor).double(), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(sines, (theirs.sin() * factor).double(), atol=0, rtol=1e-5)


def build(rope, **own):
    hf = {**SIZES, "rope_parameters": dict(rope), **own}
    return build_model(family_named("llama").config_from_hf(hf), seed=0).eval()


def packed(model, documents):
    lengths = torch.tensor([0, *map(len, documents)]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(len(d)) for d in documents])
    return model(torch.cat(documents), positions, PackedContext(lengths)).split([len(d) for d in documents])


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE], ids=["dynamic", "longrope"])
def test_a_long_document_changes_nothing_for_its_neighbors(rope):
    model = build(rope)
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(61, (n,), generator=generator) for n in (9, 150, 30, 64, 65)]
    with torch.no_grad():
        together = packed(model, documents)
        for document, hidden in zip(documents, together, strict=True):
            torch.testing.assert_close(hidden, packed(model, [document])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rope", "context"), [(DYNAMIC, 64), (LONGROPE, 32)], ids=["dynamic", "longrope"])
def test_speeds_change_only_beyond_the_trained_context(rope, context):
    code = build(rope).decoder.position_codes[0]
    assert code.length_dependent

    def angles(length):
        return code(torch.tensor([1]), lambda: torch.tensor([length]), torch.float32).rotation.cos

    assert torch.equal(angles(1), angles(context))
    assert not torch.equal(angles(context), angles(context + 1))


def test_fixed_scalings_do_not_depend_on_length():
    for rope in ({"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0}):
        assert not build(rope).decoder.position_codes[0].length_dependent


@given(shift=st.integers(0, 2000), partial=st.sampled_from([4, 8]), interleaved=st.booleans())
@settings(deadline=None)
def test_products_depend_on_distance_alone(shift, partial, interleaved):
    generator = torch.Generator().manual_seed(partial)
    query, key = torch.randn(2, 1, 1, 8, generator=generator, dtype=torch.float64)
    speeds = inverse_frequencies(partial, 1e4)

    def product(q, k):
        turn = [rotation(torch.tensor([p]), speeds, torch.float64, interleaved=interleaved) for p in (q, k)]
        return (turn[0](query) * turn[1](key)).sum()

    torch.testing.assert_close(product(7 + shift, 3 + shift), product(7, 3), atol=2e-3, rtol=0)
    turned = rotation(torch.tensor([5]), speeds, torch.float64, interleaved=interleaved)(query)
    torch.testing.assert_close(turned.norm(), query.norm())


def test_pairs_and_halves_are_one_rotation_of_reordered_coordinates():
    x = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    positions, speeds = torch.tensor([0, 5, 9]), inverse_frequencies(8, 1e4)
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    halves = rotation(positions, speeds, torch.float32)
    pairs = rotation(positions, speeds, torch.float32, interleaved=True)
    torch.testing.assert_close(pairs(x[..., order]), halves(x)[..., order])


def test_impossible_longrope_divisors_are_refused():
    with pytest.raises(ConfigError, match="short_factor has 3 divisors for 4 angular speeds"):
        build({**LONGROPE, "short_factor": [1.0] * 3})
