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


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich", "reordered", "parallel", "parallel_shared"])
def test_norms_stand_where_the_placement_says(placement):
    config = ModelConfig.parse(VALUES, {"decoder.placement": placement, "decoder.num_hidden_layers": 1})
    model = build_model(config, seed=0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    (block,), x = model.decoder.layers, torch.randn(5, 32)
    context, ids = PackedContext(torch.tensor([0, 5], dtype=torch.int32)), torch.arange(5)
    signals = [code(ids, context.lengths, x.dtype) for code in model.decoder.position_codes]

    def attend(h):
        return block.self_attn(h, signals[0], context)

    one, two, mlp = block.input_layernorm, block.post_attention_layernorm, block.mlp
    if placement == "pre":
        h = x + attend(one(x))
        expected = h + mlp(two(h))
    elif placement == "post":
        h = one(x + attend(x))
        expected = two(h + mlp(h))
    elif placement == "reordered":
        h = x + one(attend(x))
        expected = h + two(mlp(h))
    elif placement == "sandwich":
        h = x + block.self_attn_output_layernorm(attend(one(x)))
        expected = h + block.mlp_output_layernorm(mlp(two(h)))
    else:
        expected = x + attend(one(x)) + mlp((one if placement == "parallel_shared" else two)(x))
    torch.testing.assert_close(block(x, signals, context), expected)


@pytest.mark.parametrize("gate", ["rezero", "layerscale"])
def test_gated_residuals_begin_as_the_identity(gate):
    plain = ModelConfig.parse(VALUES)
    config = ModelConfig.parse(VALUES, {"decoder.residual": {"gate": gate, "layerscale_init": 1e-6}})
    model, ids = build_model(config, seed=0), torch.arange(9)
    x = model.decoder.norm(model.embed(ids))
    hidden = model(ids, ids, PackedContext(torch.tensor([0, 9], dtype=torch.int32)))
    torch.testing.assert_close(hidden, x, atol=1e-4, rtol=1e-4)
    more = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in build_model(plain).parameters())
    assert more == 2 * 2 * (1 if gate == "rezero" else 32)


def test_a_pattern_tiles_its_layers():
    window = {**VALUES["decoder"]["attention"], "sliding_window": 3}
    changes = {"decoder.num_hidden_layers": 5, "decoder.pattern": "SSF", "decoder.layers": {
        "S": {"attention": window, "positions": {"kind": "rope", "rope_theta": 50.0}},
        "F": {"mlp": {"intermediate_size": 7}},
    }}  # fmt: skip
    config = ModelConfig.parse(VALUES, changes)
    model = build_model(config, seed=0)
    assert [layer.self_attn.mask.reach for layer in model.decoder.layers] == [3, 3, None, 3, 3]
    assert [layer.mlp.up_proj.out_features for layer in model.decoder.layers] == [48, 48, 7, 48, 48]
    assert [layer.position_code for layer in model.decoder.layers] == [0, 0, 1, 0, 0]
    assert [count for _, count in config.decoder.kinds()] == [4, 1]


def test_layerdrop_leaves_layers_out_while_training_only():
    config = ModelConfig.parse(VALUES, {"decoder.residual.layerdrop": 0.999})
    model, ids = build_model(config, seed=0), torch.arange(9)
    context = PackedContext(torch.tensor([0, 9], dtype=torch.int32))
    torch.manual_seed(0)
    dropped = model.train()(ids, ids, context)
    torch.testing.assert_close(dropped, model.decoder.norm(model.embed(ids)))
    assert not torch.allclose(model.eval()(ids, ids, context), dropped)


def test_dropout_acts_while_training_only():
    config = ModelConfig.parse(VALUES, {"decoder.residual.dropout": 0.5, "embed.dropout": 0.5})
    model, ids = build_model(config, seed=0), torch.arange(9)
    context = PackedContext(torch.tensor([0, 9], dtype=torch.int32))
    assert torch.equal(model.eval()(ids, ids, context), model(ids, ids, context))
    assert not torch.equal(model.train()(ids, ids, context), model(ids, ids, context))


def test_batch_norm_normalizes_over_tokens():
    config = ModelConfig.parse(VALUES, {"decoder.norm": {"kind": "batch"}, "initializer_range": 1.0})
    model, ids = build_model(config, seed=0).train(), torch.randint(50, (64,))
    hidden = model(ids, torch.arange(64), PackedContext(torch.tensor([0, 64], dtype=torch.int32)))
    torch.testing.assert_close(hidden.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
    torch.testing.assert_close(hidden.var(0, unbiased=False), torch.ones(32), atol=1e-2, rtol=0)


def test_t_fixup_shrinks_what_updates_multiply():
    deep = {"decoder.num_hidden_layers": 16, "initialization": "t_fixup"}
    model = build_model(ModelConfig.parse(VALUES, deep), seed=0)
    layer = model.decoder.layers[3].self_attn
    factor = (9 * 16) ** -0.25
    xavier = math.sqrt(2 / (32 + 16))
    assert layer.v_proj.weight.std().item() == pytest.approx(xavier * factor, rel=0.15)
    assert layer.k_proj.weight.std().item() == pytest.approx(xavier, rel=0.15)
    assert model.embed_tokens.weight.std().item() == pytest.approx(32**-0.5 * factor, rel=0.1)


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
        ({"positions": {"kind": "alibbi"}}, "alibi"),
        ({"decoder.pattern": "AB", "decoder.layers": {"C": {}}}, "do not occur in the pattern"),
        ({"encoder": VALUES["decoder"]}, "cross_attention"),
        (
            {"decoder.mlp": {"kind": "moe", "num_experts": 4, "num_experts_per_tok": 5, "moe_intermediate_size": 8}},
            "exceeds the 4 experts",
        ),
    ],
)
def test_impossible_configurations(overrides, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.parse(VALUES, overrides)
