"""Weight rules read backwards are the export, for every family and every layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.models.build import build_model
from lmworks.models.families import FAMILIES, family_named
from lmworks.models.hub.gguf import weight_rules
from lmworks.models.hub.rules import PairsToHalves, Rule, Split, Transpose, expand, export_state, rename
from lmworks.models.hub.tensor_source import own_state
from lmworks.nn.rope import apply_rope, inverse_frequencies, rope_table


def there_and_back(rules, state):
    exported = export_state(rules, state)
    loaded = {}
    for rule in rules:
        shapes = [tuple(state[n].shape) for n in rule.ours]
        loaded |= rule.load([exported[n] for n in rule.theirs], shapes)
    return exported, loaded


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_round_trips(name, tied):
    row = family_named(name)
    hf = row.to_hf(next(iter(row.presets.values())))
    small = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 40, "n_positions": 16} if name == "gpt2" else {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4,
        "intermediate_size": 40, "attention_bias": name in ("llama", "qwen2", "qwen3"), "mlp_bias": name == "llama",
    }  # fmt: skip
    if name == "mistral":
        small = {k: v for k, v in small.items() if "bias" not in k}
    elif name != "gpt2":
        small.pop("mlp_bias") if name != "llama" else None
    config = row.config_from_hf({**hf, "vocab_size": 31, "bos_token_id": 0, "eos_token_id": 1, **small,
                                 "tie_word_embeddings": tied})  # fmt: skip
    model = build_model(config, seed=0)
    state = own_state(model)
    rules = expand(row.weight_rules, state, 2)
    _, loaded = there_and_back(rules, state)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[n], state[n]) for n in state)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), columns=st.integers(1, 5),
    operations=st.permutations([Transpose(), Split()]), matrices=st.booleans(),
)  # fmt: skip
def test_any_fused_layout_round_trips(sizes, columns, operations, matrices):
    if operations[0] != Transpose() or not matrices:
        operations = [Split()]
    names = tuple("abcd"[: len(sizes)])
    state = {n: torch.randn(s, columns) if matrices else torch.randn(s) for n, s in zip(names, sizes, strict=True)}
    exported, loaded = there_and_back([Rule(names, ("fused",), tuple(operations))], state)
    assert list(exported) == ["fused"]
    assert exported["fused"].numel() == sum(t.numel() for t in state.values())
    assert all(torch.equal(loaded[n], state[n]) for n in names)


@settings(deadline=None)
@given(heads=st.integers(1, 4), half=st.integers(1, 4), columns=st.integers(0, 3))
def test_pairs_and_halves_are_inverse(heads, half, columns):
    weight = torch.randn(heads * half * 2, columns) if columns else torch.randn(heads * half * 2)
    _, loaded = there_and_back([rename("a", "b", PairsToHalves(half * 2))], {"a": weight})
    assert torch.equal(loaded["a"], weight)


def test_turning_halves_of_loaded_rows_is_turning_pairs_of_stored_rows():
    """The point of the permutation: rotary attention scores are the same in either layout."""
    head_dim, x = 8, torch.randn(5, 6)
    stored = torch.randn(2, 3 * head_dim, 6)  # query and key projections, adjacent pairs
    halves = [PairsToHalves(head_dim).load([w], [tuple(w.shape)])[0] for w in stored]
    speeds = inverse_frequencies(head_dim, 100.0)
    table = rope_table(torch.arange(5), speeds, torch.float32)
    query, key = (apply_rope((x @ w.T).view(5, 3, head_dim), *table) for w in halves)
    turns = torch.polar(torch.ones(5, 4), torch.arange(5)[:, None] * speeds)[:, None]
    pairs = [torch.view_as_complex((x @ w.T).view(5, 3, 4, 2)) * turns for w in stored]
    expected = torch.einsum("nhd,mhd->hnm", pairs[0], pairs[1].conj()).real
    torch.testing.assert_close(torch.einsum("nhd,mhd->hnm", query, key), expected)


def test_rules_cover_each_tensor_once():
    with torch.device("meta"):
        model = build_model(family_named("llama").presets["smollm2-135m"])
    state = own_state(model)
    assert len(expand(weight_rules(64), state, 30)) == len(state)
    with pytest.raises(AssertionError, match=r"no weight rule for \['extra'\]"):
        expand(weight_rules(64), [*state, "extra"], 30)
    with pytest.raises(AssertionError, match="two weight rules"):
        expand([rename("a", "b"), rename("a", "c")], ["a"], 1)
