"""Weight rules read backwards are the export, for every family and every layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.models.build import build_model
from lmworks.models.families import FAMILIES, family_named
from lmworks.models.hub.rules import (
    PairsToHalves,
    Rule,
    Split,
    Stack,
    Transpose,
    expand,
    export_state,
    rename,
    without_prefix,
)
from lmworks.models.hub.tensor_source import own_state
from lmworks.nn.rope import inverse_frequencies, rotation

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def there_and_back(rules, state):
    exported = export_state(rules, state)
    loaded = {}
    for rule in rules:
        shapes = [tuple(state[n].shape) for n in rule.ours]
        loaded |= rule.load([exported[n] for n in rule.theirs], shapes)
    return exported, loaded


def same_bytes(loaded, state):
    return loaded.keys() == state.keys() and all(
        loaded[n].shape == t.shape and loaded[n].contiguous().numpy().tobytes() == t.contiguous().numpy().tobytes()
        for n, t in state.items()
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_rule_for_every_tensor(name):
    """Shapes alone, on the meta device; values make the round trip in `lmworks prove families`."""
    row = family_named(name)
    assert row.presets, "a family comes with at least one published size"
    config = min(row.presets.values(), key=lambda c: sum(s.num_hidden_layers for s in c.stacks))
    with torch.device("meta"):
        state = own_state(build_model(config))
    exported, loaded = there_and_back(row.rules(config, state), state)
    assert {n: t.shape for n, t in loaded.items()} == {n: t.shape for n, t in state.items()}
    assert sum(t.numel() for t in exported.values()) == sum(t.numel() for t in state.values())


@settings(deadline=None)
@given(sizes=SIZES, columns=st.integers(1, 4), groups=st.integers(1, 4), matrices=st.booleans(), turned=st.booleans())
def test_any_fusion_of_rows_round_trips(sizes, columns, groups, matrices, turned):
    """A fusion holds, group after group, the same share of each part."""
    names = tuple("abcd"[: len(sizes)])
    shapes = [(groups * size, columns) if matrices else (groups * size,) for size in sizes]
    state = {n: torch.randn(shape) for n, shape in zip(names, shapes, strict=True)}
    operations = (Transpose(), Split(groups=groups)) if turned else (Split(groups=groups),)
    exported, loaded = there_and_back([Rule(names, ("fused",), operations)], state)
    assert same_bytes(loaded, state)
    fused = exported["fused"].mT if turned and matrices else exported["fused"]
    first = torch.cat([state[n][: state[n].shape[0] // groups] for n in names])
    assert torch.equal(fused[: len(first)], first)


@settings(deadline=None)
@given(sizes=SIZES, experts=st.integers(1, 4), groups=st.integers(1, 3), columns=st.integers(1, 3))
def test_any_fusion_inside_stacked_experts_round_trips(sizes, experts, groups, columns):
    names = tuple("abcd"[: len(sizes)])
    state = {n: torch.randn(experts, groups * size, columns) for n, size in zip(names, sizes, strict=True)}
    rule = Rule(names, ("fused",), (Transpose(), Split(dim=1, groups=groups)))
    exported, loaded = there_and_back([rule], state)
    assert exported["fused"].shape == (experts, columns, groups * sum(sizes))
    assert same_bytes(loaded, state)


@settings(deadline=None)
@given(experts=st.integers(1, 5), parts=st.integers(1, 3), rows=st.integers(1, 3))
def test_experts_stored_one_by_one_round_trip(experts, parts, rows):
    names = tuple("abc"[:parts])
    theirs = tuple(f"{e}.{n}" for e in range(experts) for n in names)
    state = {n: torch.randn(experts, rows, 2) for n in names}
    exported, loaded = there_and_back([Rule(names, theirs, (Stack(parts),))], state)
    assert all(torch.equal(exported[f"{e}.{n}"], state[n][e]) for e in range(experts) for n in names)
    assert same_bytes(loaded, state)


@settings(deadline=None)
@given(heads=st.integers(1, 4), half=st.integers(1, 4), columns=st.integers(0, 3))
def test_pairs_and_halves_are_inverse(heads, half, columns):
    weight = torch.randn(heads * half * 2, columns) if columns else torch.randn(heads * half * 2)
    _, loaded = there_and_back([rename("a", "b", PairsToHalves(half * 2))], {"a": weight})
    assert same_bytes(loaded, {"a": weight})


def test_turning_halves_of_loaded_rows_is_turning_pairs_of_stored_rows():
    """The point of the permutation: rotary attention scores are the same in either layout."""
    head_dim, x = 8, torch.randn(5, 6)
    stored = torch.randn(2, 3 * head_dim, 6)  # query and key projections, adjacent pairs
    halves = [PairsToHalves(head_dim).load([w], [tuple(w.shape)])[0] for w in stored]
    speeds = inverse_frequencies(head_dim, 100.0)
    turn = rotation(torch.arange(5), speeds, torch.float32)
    query, key = (turn((x @ w.T).view(5, 3, head_dim)) for w in halves)
    turns = torch.polar(torch.ones(5, 4), torch.arange(5)[:, None] * speeds)[:, None]
    pairs = [torch.view_as_complex((x @ w.T).view(5, 3, 4, 2)) * turns for w in stored]
    expected = torch.einsum("nhd,mhd->hnm", pairs[0], pairs[1].conj()).real
    torch.testing.assert_close(torch.einsum("nhd,mhd->hnm", query, key), expected)


def test_another_layout_is_read_where_the_first_is_absent():
    stacked = Rule(("a.{i}", "b.{i}"), ("m.both.{i}",), (Split(dim=1),))
    rule = Rule(("a.{i}", "b.{i}"), ("m.0a.{i}", "m.0b.{i}"), (Stack(2),), also=(stacked,))
    (concrete,) = expand([rule], ["a.0", "b.0"], 1)
    assert concrete.as_stored(["m.0a.0", "m.0b.0"]) is concrete
    assert concrete.as_stored(["m.both.0"]).theirs == ("m.both.0",)
    assert concrete.as_stored(["m.0a.0"]) is concrete, "what is missing is told by the names that are written"
    (bare,) = without_prefix([concrete], "m.")
    assert bare.theirs == ("0a.0", "0b.0")
    assert bare.as_stored(["both.0"]).theirs == ("both.0",)


def test_rules_cover_each_tensor_once():
    names = ["layers.0.up_proj.weight", "layers.1.up_proj.weight", "other"]
    misspelled = [rename("layers.{i}.upproj.weight", "up"), rename("other", "b")]
    missing = r"no weight rule names layers\.\{i\}\.up_proj\.weight \(misspelled as layers\.\{i\}\.upproj\.weight\?\)$"
    with pytest.raises(AssertionError, match=missing):
        expand(misspelled, names, 2)
    with pytest.raises(AssertionError, match=r"no weight rule names extra$"):
        expand([rename("a", "b")], ["a", "extra"], 1)
    with pytest.raises(AssertionError, match=r"two weight rules name a$"):
        expand([rename("a", "b"), rename("a", "c")], ["a"], 1)
    with pytest.raises(AssertionError, match=r"two weight rules write c$"):
        export_state([rename("a", "c"), rename("b", "c")], {"a": torch.zeros(1), "b": torch.zeros(1)})
