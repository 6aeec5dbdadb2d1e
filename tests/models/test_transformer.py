"""The built model: documents never see each other, weights are reproducible, impossible sizes are refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import ConfigError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.nn.attention_context import PackedContext

VALUES = {
    "vocab_size": 50, "hidden_size": 32, "max_position_embeddings": 64,
    "decoder": {
        "num_hidden_layers": 2,
        "attention": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
        "mlp": {"intermediate_size": 48},
    },
}  # fmt: skip
POSITIONS = {"rope": {}, "learned": {"positions": {"kind": "learned"}}}


def logits(model, documents):
    lengths = [len(d) for d in documents]
    positions = torch.cat([torch.arange(n) for n in lengths])
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    with torch.no_grad():
        return model.logits(model(torch.cat(documents), positions, PackedContext(bounds)))


@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5), kind=st.sampled_from(list(POSITIONS)))
def test_packed_and_separate_documents_agree(lengths, kind):
    model = build_model(ModelConfig.parse({**VALUES, **POSITIONS[kind]}), seed=0)
    documents = [torch.randint(50, (n,)) for n in lengths]
    separate = torch.cat([logits(model, [d]) for d in documents])
    torch.testing.assert_close(logits(model, documents), separate, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", POSITIONS)
def test_the_future_is_not_seen(kind):
    model = build_model(ModelConfig.parse({**VALUES, **POSITIONS[kind]}), seed=0)
    ids = torch.arange(12)
    changed = torch.cat([ids[:8], ids[8:] + 20])
    torch.testing.assert_close(logits(model, [ids])[:8], logits(model, [changed])[:8])
    assert not torch.allclose(logits(model, [ids])[8:], logits(model, [changed])[8:])


def test_a_seed_fixes_the_weights_and_leaves_the_global_state():
    config = ModelConfig.parse(VALUES)
    before = torch.get_rng_state()
    first, second = build_model(config, seed=3), build_model(config, seed=3)
    other = build_model(config, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.embed_tokens.weight, other.embed_tokens.weight)
    assert first.lm_head.weight is first.embed_tokens.weight
    assert torch.equal(torch.get_rng_state(), before)


def test_projections_into_the_residual_stream_start_smaller():
    wide = {**VALUES, "hidden_size": 256, "initializer_range": 0.05}
    model = build_model(ModelConfig.parse(wide), seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert parameter.std().item() == pytest.approx(0.05 / math.sqrt(4), rel=0.1), name
        elif parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.1), name
        else:
            assert torch.all(parameter == 1), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"decoder.attention.num_key_value_heads": 3}, "not a multiple"),
        ({"decoder.attention.head_dim": 7}, "must be even"),
        ({"eos_token_ids": [50]}, "outside the vocabulary"),
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"decoder.norm.eps": 0}, "decoder.norm.eps = 0"),
        ({"hiden_size": 3}, "did you mean 'hidden_size'"),
        ({"positions": {"kind": "alibi"}}, "alibi"),
    ],
)
def test_impossible_configurations(overrides, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.parse(VALUES, overrides)
