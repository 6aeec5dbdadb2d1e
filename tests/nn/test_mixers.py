"""Cheap attention: equal to dense attention where it should be, documents apart, trainable end to end."""

import pytest
import torch

from lmworks.core.errors import ConfigError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.nn.attention_context import PackedContext

KINDS = {
    "longformer": {"kind": "block_sparse", "window": 4, "block_size": 4},
    "bigbird": {"kind": "block_sparse", "layout": "bigbird", "block_size": 4, "num_random_blocks": 1},
    "lsh": {"kind": "lsh", "num_buckets": 4, "num_hashes": 2, "chunk_length": 8},
    "elu": {"kind": "linear"},
    "relu": {"kind": "linear", "feature_map": "relu"},
    "favor": {"kind": "linear", "feature_map": "favor", "num_features": 64},
    "linformer": {"kind": "linformer", "projected_length": 8},
}


def config(attention, *, causal=True):
    stack = {
        "num_hidden_layers": 2,
        "attention": {"num_attention_heads": 3, "head_dim": 8, **attention},
        "mlp": {"intermediate_size": 32},
        "causal": causal,
    }
    return ModelConfig.parse({
        "vocab_size": 61, "hidden_size": 24, "max_position_embeddings": 64, "initializer_range": 0.2,
        ("decoder" if causal else "encoder"): stack,
    })  # fmt: skip


def hidden(model, documents):
    bounds = torch.tensor([0, *(len(d) for d in documents)]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(len(d)) for d in documents])
    return model(torch.cat(documents), positions, PackedContext(bounds))


def documents(*lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(61, (n,), generator=generator) for n in lengths]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_documents_do_not_see_each_other_and_gradients_reach_every_weight(kind, causal):
    if kind == "linformer" and causal:
        with pytest.raises(ConfigError, match="cannot be causal"):
            config(KINDS[kind], causal=True)
        return
    model = build_model(config(KINDS[kind], causal=causal), seed=0)
    first, second = documents(19, 7)
    together = hidden(model, [first, second])
    torch.testing.assert_close(together[:19], hidden(model, [first]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[19:], hidden(model, [second]), atol=1e-5, rtol=1e-5)
    model.logits(together).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "linformer"])
def test_a_causal_mixer_never_sees_the_future(kind):
    model = build_model(config(KINDS[kind]), seed=0)
    (ids,) = documents(20)
    changed = ids.clone()
    changed[-1] = (changed[-1] + 1) % 61
    # Hashing sorts whole documents, so its chunks may shift with later tokens; one chunk has nothing to shift.
    if kind == "lsh":
        model = build_model(config({**KINDS[kind], "chunk_length": 32}), seed=0)
    torch.testing.assert_close(hidden(model, [changed])[:-1], hidden(model, [ids])[:-1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("wide", [
    {"kind": "block_sparse", "window": 64, "num_global_tokens": 0},
    {"kind": "block_sparse", "layout": "bigbird", "block_size": 32},
])  # fmt: skip
def test_a_full_window_is_dense_attention(wide, causal):
    sparse = build_model(config(wide, causal=causal), seed=0)
    dense = build_model(config({"kind": "softmax", "num_key_value_heads": 3}, causal=causal), seed=1)
    dense.load_state_dict(sparse.state_dict())
    found = documents(30, 5)
    torch.testing.assert_close(hidden(sparse, found), hidden(dense, found), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_more_features_bring_favor_nearer_to_softmax():
    dense = build_model(config({"kind": "softmax", "num_key_value_heads": 3}), seed=0)
    found = documents(30)
    errors = []
    for features in (8, 2048):
        model = build_model(config({**KINDS["favor"], "num_features": features}), seed=0)
        model.load_state_dict(dense.state_dict())
        errors.append(float((hidden(model, found) - hidden(dense, found)).norm()))
    assert errors[1] < errors[0] / 2
