"""Closed-form counts are what the built model has, what torch counts while it runs and what autograd keeps."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lmworks.core.errors import ConfigError
from lmworks.kernels import attention as attention_kernels
from lmworks.models import accounting
from lmworks.models.accounting import cache_bytes, flops_per_token, kv_bytes_per_token, parameters, weight_bytes
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.families import FAMILIES, family_named
from lmworks.models.memory import activation_bytes, training_bytes
from lmworks.models.mixers import MIXERS
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.quantized import QuantizedLinear

GQA = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
MLA = {"kind": "mla", "num_attention_heads": 3, "q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 6,
       "qk_rope_head_dim": 4, "v_head_dim": 10}  # fmt: skip
MOE = {"kind": "moe", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
CROSSED = {"cross_attention": {**GQA, "num_key_value_heads": 4}}


def model(*, attention=GQA, mlp=None, stack=None, encoder=None, which="decoder", **changes):
    column = {"num_hidden_layers": 3, "attention": attention, "mlp": mlp or {"intermediate_size": 40}, **(stack or {})}
    stacks = {which: column} if encoder is None else {which: column, "encoder": encoder}
    sizes = {"vocab_size": 50, "hidden_size": 24, "max_position_embeddings": 64}
    return ModelConfig.model_validate({**sizes, **stacks, **changes})


ENCODER = {"num_hidden_layers": 2, "causal": False, "attention": GQA, "mlp": {"intermediate_size": 36}}
CASES = {
    "gqa": model(),
    "tied no": model(tie_word_embeddings=False),
    "biases": model(attention={**GQA, "qkv_bias": True, "o_bias": True}, mlp={"intermediate_size": 40, "bias": True}),
    "gpt2": model(mlp={"intermediate_size": 40, "gated": False}, stack={"norm": {"kind": "layer"}},
                  positions={"kind": "learned", "offset": 2}),
    "moe": model(mlp={**MOE, "shared_intermediate_size": 28, "shared_expert_gate": True}),
    "dense, then moe": model(mlp=MOE, stack={"pattern": "DMM", "layers": {"D": {"mlp": {"intermediate_size": 44}}}}),
    "mla": model(attention=MLA),
    "encoder": model(which="encoder", stack={"causal": False, "placement": "post"}, head={"kind": "masked_lm"}),
    "classifier": model(head={"kind": "sequence_classification", "num_labels": 5, "dense_act": "tanh"}),
    "shared layers": model(which="encoder", stack={"causal": False, "num_hidden_groups": 1},
                           embed={"embedding_size": 10}, head={"kind": "masked_lm"}),
    "encoder and decoder": model(encoder=ENCODER, stack=CROSSED),
    "linformer": model(attention={"kind": "linformer", "num_attention_heads": 3, "head_dim": 8, "projected_length": 5},
                       which="encoder", stack={"causal": False}, positions={"kind": "sinusoidal"}),
    "xl": model(attention={"kind": "xl", "num_attention_heads": 3, "head_dim": 8}, which="encoder",
                stack={"causal": False}, positions={"kind": "relative_sinusoidal"}),
    "linear": model(attention={"kind": "linear", "num_attention_heads": 3, "head_dim": 8}, which="encoder",
                    stack={"causal": False}),
}  # fmt: skip


def empty(config):
    with torch.device("meta"):
        return build_model(config)


def run(config, n, m=None, built=None, *, latent=False):
    """Logits, or hidden states of models without a vocabulary's head, of one document."""
    built = built or build_model(config, seed=0)
    ids, bounds = torch.randint(0, config.vocab_size, (n,)), torch.tensor([0, n], dtype=torch.int32)
    memory, source = None, None
    if m is not None:
        source = torch.tensor([0, m], dtype=torch.int32)
        memory = built.encode(torch.randint(0, config.vocab_size, (m,)), torch.arange(m), PackedContext(source))
    hidden = built(ids, torch.arange(n), PackedContext(bounds, source, latent=latent), memory=memory)
    if hasattr(built, "lm_head"):
        return built.logits(hidden)
    return built.head(hidden)


def counted_flops(config, n, m=None, **how):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(config, n, m, **how)
    return counter.get_total_flops()


@pytest.fixture
def whole_matrices(monkeypatch):
    """torch's counter does not know CPU's fused attention; the formula's products it does."""
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention",
        lambda q, k, v, attn_mask=None, is_causal=False, scale=None: (q @ k.mT * scale).softmax(-1) @ v,
    )  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_of_published_models(name):
    for config in family_named(name).presets.values():
        assert parameters(config).total == sum(p.numel() for p in empty(config).parameters())


def role(name, parameter):
    if ".experts." in name:
        return "experts"
    if parameter.ndim == 1 or name.endswith(("_bias", ".seg_embed")):
        return "vectors"
    if name.startswith(("lm_head", "head.")):
        return "head"
    looked_up = (
        name.startswith("embed_tokens") or ".embed_positions" in name or ".embed_types" in name or "target_" in name
    )
    return "embedding" if looked_up or ".position_codes" in name else "linear"


def by_role(config):
    counts = dict.fromkeys(("embedding", "head", "linear", "experts", "vectors"), 0)
    for name, parameter in empty(config).named_parameters():
        counts[role(name, parameter)] += parameter.numel()
    return counts


sizes = st.sampled_from([2, 4, 6])
flags = st.booleans()


@st.composite
def attentions(draw, causal=True, kinds=tuple(k for k in MIXERS if k != "xl")):
    kind = draw(st.sampled_from([k for k in kinds if not (causal and k == "linformer")]))
    heads = draw(st.integers(1, 3))
    own = {"kind": kind, "num_attention_heads": heads, "head_dim": draw(sizes)}
    if kind == "softmax":
        return {**own, "num_attention_heads": heads * 2, "num_key_value_heads": heads, "qkv_bias": draw(flags),
                "o_bias": draw(flags), "sinks": draw(flags),
                "qk_norm": draw(st.sampled_from(["none", "per_head", "full"]))}  # fmt: skip
    if kind == "mla":
        return {"kind": kind, "num_attention_heads": heads, "q_lora_rank": draw(st.none() | sizes),
                "kv_lora_rank": draw(sizes), "qk_nope_head_dim": draw(sizes), "qk_rope_head_dim": draw(sizes),
                "v_head_dim": draw(sizes), "attention_bias": draw(flags)}  # fmt: skip
    return own


@st.composite
def feed_forwards(draw):
    shape = {"gated": draw(flags), "bias": draw(flags)}
    if draw(flags):
        return {**shape, "intermediate_size": draw(st.integers(1, 20))}
    return {**shape, "kind": "moe", "num_experts": 4, "num_experts_per_tok": draw(st.integers(1, 4)),
            "moe_intermediate_size": draw(st.integers(1, 9)), "shared_expert_gate": draw(flags),
            "shared_intermediate_size": draw(st.sampled_from([0, 7])), "correction_bias": draw(flags),
            "router_bias": draw(flags)}  # fmt: skip


norms = st.fixed_dictionaries({"kind": st.sampled_from(["rms", "layer", "batch"]), "bias": flags, "affine": flags})
kinds_of_positions = ("none", "learned", "sinusoidal", "alibi", "relative_bias", "rope")
positions = st.sampled_from([*({"kind": k} for k in kinds_of_positions), {"kind": "relative_bias", "per_layer": True}])
heads = st.sampled_from(["causal_lm", "masked_lm", "next_sentence", "sequence_classification", "token_classification",
                         "question_answering", "reward", "embedding"])  # fmt: skip


@st.composite
def stacks(draw, *, causal):
    column = {
        "num_hidden_layers": draw(st.integers(1, 4)), "attention": draw(attentions(causal)), "causal": causal,
        "mlp": draw(feed_forwards()), "norm": draw(norms), "final_norm": draw(flags), "first_norm": draw(flags),
        "placement": draw(st.sampled_from(["pre", "post", "sandwich", "reordered", "parallel", "parallel_shared"])),
        "residual": {"gate": draw(st.sampled_from(["none", "rezero", "layerscale"]))},
    }  # fmt: skip
    if draw(flags):
        other = {"attention": draw(attentions(causal)), "mlp": draw(feed_forwards())}
        column |= {"pattern": "ABA"[: draw(st.integers(1, 3))], "layers": {"A": other}}
    if not causal and draw(flags):
        column["num_hidden_groups"] = 1
    return column


@st.composite
def configurations(draw):
    shape = draw(st.sampled_from(["decoder", "encoder", "both"]))
    values = {"vocab_size": 11, "hidden_size": 6, "max_position_embeddings": 9, "tie_word_embeddings": draw(flags)}
    embed = {"type_vocab_size": draw(st.integers(0, 2)), "norm": draw(st.none() | norms)}
    kind = draw(heads)
    head = {"kind": kind}
    if kind in ("sequence_classification", "token_classification"):
        head["num_labels"] = draw(st.integers(1, 3))
    if kind.endswith(("classification", "answering")):
        head |= {"dense_act": draw(st.sampled_from(["none", "tanh"])), "dense_norm": draw(flags)}
    if kind == "masked_lm":
        head |= {"next_sentence": draw(flags), "bias": draw(flags)}
        embed["embedding_size"] = draw(st.none() | sizes)
    if kind == "embedding":
        head["pooler"] = draw(flags)
    values |= {"head": head, "embed": embed, "positions": draw(positions)}
    if shape != "encoder":
        values["decoder"] = draw(stacks(causal=True))
    if shape != "decoder":
        values["encoder"] = draw(stacks(causal=False))
    if shape == "both":
        values["decoder"]["cross_attention"] = draw(attentions(kinds=("softmax",)))
    return ModelConfig.model_validate(values)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(configurations())
def test_parameters_by_role_of_any_model(config):
    counted = parameters(config)
    assert {name: getattr(counted, name) for name in by_role(config)} == by_role(config)
    assert counted.active <= counted.total


def test_parameters_by_role_of_attention_by_distance():
    counted = parameters(CASES["xl"])
    assert {name: getattr(counted, name) for name in by_role(CASES["xl"])} == by_role(CASES["xl"])


def test_active_parameters_leave_out_experts_not_chosen():
    counted = parameters(CASES["moe"])
    assert counted.experts == 3 * 6 * 3 * 24 * 20
    assert counted.total - counted.active == counted.experts * 4 / 6
    mixtral = parameters(family_named("mixtral").presets["mixtral-8x7b"])
    assert (round(mixtral.total / 1e9, 1), round(mixtral.active / 1e9, 1)) == (46.7, 12.9)


@pytest.mark.parametrize("name", CASES)
def test_operations_are_those_torch_counts(name, whole_matrices):
    config = CASES[name]
    n, m = (32, 16) if config.encoder and config.decoder else (32, None)
    if name == "linear":
        n = 128  # a whole chunk, of which none is padding
    assert counted_flops(config, n, m) == pytest.approx(n * flops_per_token(config, n, source_length=m).total, rel=1e-9)


def test_operations_of_the_backward_pass(whole_matrices):
    with FlopCounterMode(display=False) as counter:
        run(CASES["moe"], 32).sum().backward()
    assert counter.get_total_flops() == 32 * flops_per_token(CASES["moe"], 32).training


def test_operations_of_latent_attention_over_its_latents(whole_matrices):
    config = CASES["mla"]
    expanded, absorbed = (flops_per_token(config, 32, absorbed=a) for a in (False, True))
    assert counted_flops(config, 32, latent=True) == 32 * absorbed.total
    assert absorbed.total - absorbed.scores == expanded.total - expanded.scores
    assert absorbed.scores / expanded.scores == (2 * 10 + 4) / (6 + 4 + 10)


@pytest.mark.parametrize("causal", [True, False])
def test_operations_under_a_window(causal, whole_matrices, monkeypatch):
    """Query by query no key is computed that is not seen, but for those a tile's neighbors see."""
    monkeypatch.setattr(attention_kernels, "QUERY_TILE", 1)
    config = model(attention={**GQA, "sliding_window": 5}, stack={"causal": causal})
    n = 40
    if causal:
        expected = sum(flops_per_token(config, i + 1).total for i in range(n))
        assert counted_flops(config, n) == expected
    assert flops_per_token(config, 1000).scores == 3 * 4 * 4 * 8 * (5 if causal else 9)


def test_flops_by_part():
    parts = flops_per_token(CASES["encoder and decoder"], 10, source_length=20)
    assert parts.total == sum(getattr(parts, p) for p in parts.__dataclass_fields__)
    assert parts.head == 2 * 50 * 24
    assert parts.encoder == 2 * flops_per_token(model(encoder=None, which="encoder", stack=ENCODER), 20).total - (
        2 * 2 * 50 * 24
    )
    assert flops_per_token(CASES["gqa"], 10).encoder == flops_per_token(CASES["gqa"], 10).cross_attention == 0


@pytest.mark.parametrize(("layout", "most"), [("longformer", 2 * 8 + 1 + 1), ("bigbird", 4 * (1 + 4 + 3))])
def test_sparse_attention_costs_no_more_than_its_pattern(layout, most):
    attention = {"kind": "block_sparse", "layout": layout, "num_attention_heads": 3, "head_dim": 8, "window": 8,
                 "block_size": 4}  # fmt: skip
    config = model(attention=attention, which="encoder", stack={"causal": False})
    per_key = 3 * 3 * 4 * 8
    assert flops_per_token(config, 10_000).scores == flops_per_token(config, 1e6).scores == per_key * most
    assert flops_per_token(config, 8).scores == per_key * 8


def test_bytes_of_weights():
    config = model(mlp={**MOE, "shared_intermediate_size": 28, "shared_expert_gate": True}, tie_word_embeddings=True)
    assert weight_bytes(config, torch.bfloat16) == 2 * parameters(config).total
    for case in (config, CASES["gqa"], CASES["classifier"]):
        built = build_model(case)
        linear = [n for n, m in built.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
        for name in linear:
            built.set_submodule(name, QuantizedLinear.from_linear(built.get_submodule(name)))
        held = {t.data_ptr(): t.nbytes for t in built.state_dict().values()}
        assert weight_bytes(case, torch.float32, int8=True) == sum(held.values())


def test_bytes_of_the_cache():
    assert kv_bytes_per_token(CASES["gqa"], torch.bfloat16) == 3 * 2 * 2 * 8 * 2
    assert kv_bytes_per_token(CASES["mla"], torch.float32) == 3 * (10 + 4) * 4
    window = {"attention": {**GQA, "sliding_window": 4}}
    mixed = cache_bytes(model(stack={"pattern": "SF", "layers": {"S": window}}), torch.float32)
    assert (mixed.windowed, mixed.per_token) == (2 * 128, 3 * 128)
    both = cache_bytes(CASES["encoder and decoder"], torch.float32)
    assert (both.per_token, both.per_source_token) == (3 * 2 * 2 * 8 * 4, 3 * 2 * 4 * 8 * 4)
    assert cache_bytes(CASES["encoder"], torch.float32) == accounting.CacheBytes(0, 0, 0)
    linear = model(attention={"kind": "linear", "num_attention_heads": 3, "head_dim": 8})
    with pytest.raises(ConfigError, match="linear attention cannot be served"):
        kv_bytes_per_token(linear, torch.float32)


def kept_bytes(config, n):
    """Bytes that autograd keeps of a forward pass, weights left out, each storage once."""
    built = build_model(config, seed=0).train()
    own = {p.untyped_storage().data_ptr() for p in built.parameters()}
    kept, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or its address could be given to another
        return tensor

    built.lm_head = torch.nn.Identity()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(config, n, n if config.encoder and config.decoder else None, built)
    return sum(kept.values())


def trained(**changes):
    """Wide enough that a few numbers per token and head do not count."""
    wide = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, **changes.pop("attention", {})}
    if "kind" in wide:
        del wide["num_key_value_heads"], wide["head_dim"]
    return model(**{"attention": wide, "mlp": {"intermediate_size": 128}, "hidden_size": 64, **changes})


PRE_CROSSED = {"cross_attention": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}}
TRAINED = {
    "gqa": trained(),
    "plain net, LayerNorm": trained(
        mlp={"intermediate_size": 256, "gated": False, "hidden_act": "gelu"}, stack={"norm": {"kind": "layer"}}
    ),
    "relu": trained(mlp={"intermediate_size": 256, "gated": False, "hidden_act": "relu"}),
    "quick gelu": trained(mlp={"intermediate_size": 256, "hidden_act": "quick_gelu"}),
    "post": trained(stack={"placement": "post"}),
    "parallel": trained(stack={"placement": "parallel"}),
    "one norm": trained(stack={"placement": "parallel_shared"}),
    "sandwich, normed keys": trained(stack={"placement": "sandwich"}, attention={"qk_norm": "per_head"}),
    "gates": trained(stack={"residual": {"gate": "layerscale"}}),
    "soft cap": trained(attention={"attn_logit_softcapping": 20.0}),
    "sinks": trained(attention={"sinks": True}),
    "trained distances": trained(positions={"kind": "relative_bias"}),
    "alibi": trained(positions={"kind": "alibi"}),
    "mla": trained(attention={**MLA, "num_attention_heads": 4, "qk_nope_head_dim": 12, "v_head_dim": 16}),
    "moe": trained(mlp={**MOE, "moe_intermediate_size": 48, "shared_intermediate_size": 40}),
    "clamped experts": trained(mlp={**MOE, "moe_intermediate_size": 64, "swiglu_limit": 7.0}),
    "both": trained(stack=PRE_CROSSED, encoder={**ENCODER, "attention": PRE_CROSSED["cross_attention"]}),
}


@pytest.mark.parametrize("name", TRAINED)
def test_activations_are_those_autograd_keeps(name, monkeypatch):
    monkeypatch.setattr(attention_kernels, "LONGEST", 0)  # fused attention, as on larger machines
    config = TRAINED[name]
    assert activation_bytes(config, 192, torch.float32) == pytest.approx(kept_bytes(config, 192), rel=0.08)


def test_checkpointing_keeps_one_vector_per_layer():
    deep = [trained(stack={"num_hidden_layers": n}) for n in (10, 11)]
    few, one_more = (activation_bytes(c, 100, torch.bfloat16, checkpointing=True) for c in deep)
    assert one_more - few == 100 * 64 * 2
    assert few < activation_bytes(deep[0], 100, torch.bfloat16) / 5


def test_training_holds_weights_gradients_and_states():
    config = trained()
    count = parameters(config).total
    full, mixed = (training_bytes(config, 64, precision) for precision in (torch.float32, torch.bfloat16))
    assert (full.weights, full.gradients, full.optimizer) == (4 * count, 4 * count, 8 * count)
    assert (mixed.weights, mixed.gradients, mixed.optimizer) == (6 * count, 6 * count, 8 * count)
    assert mixed.activations == full.activations / 2
    assert full.total - training_bytes(config, 64, torch.float32, optimizer_states=1).total == 4 * count
