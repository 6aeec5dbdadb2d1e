"""Mixtures of sources: exact shares at every prefix, rows as a pure function of their number, named errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import ConfigError, DataError
from lmworks.data.tokens.mixing import MixedRows, MixtureConfig
from lmworks.data.tokens.packing import PackedRows
from lmworks.data.tokens.schedule import MixedStage, MixingSchedule
from lmworks.data.tokens.shares import WHOLE, limited_shares, rounded_shares

WIDTH = 4


class Store:
    """Documents that say whose they are: source `s` holds the ids from 1000 * s on, each once."""

    def __init__(self, source, documents, length=6):
        first = 1000 * source
        self.documents = [np.arange(first + i * length, first + (i + 1) * length) for i in range(documents)]

    @property
    def lengths(self):
        return np.array([len(d) for d in self.documents], np.int64)

    def __getitem__(self, index):
        return self.documents[index]


def mixture(weights, curriculum=(), **changes):
    sources = {f"s{i}": {"tokens": f"t{i}", "weight": w, **changes} for i, w in enumerate(weights)}
    return MixtureConfig.parse({"sources": sources, "curriculum": list(curriculum)})


def mixed(config, total=100, seed=0, documents=20):
    rows = [PackedRows(Store(i, documents), WIDTH, seed + i) for i in range(len(config.sources))]
    sizes = {name: r.rows_per_epoch for name, r in zip(config.sources, rows, strict=True)}
    limits = [s.max_epochs for s in config.sources.values()]
    return MixedRows(rows, config.schedule(sizes, total), limits)


@st.composite
def shares(draw, sources=None):
    """Weights of up to three decimals that sum to 1; some may be 0."""
    count = sources or draw(st.integers(1, 6))
    cuts = sorted(draw(st.lists(st.integers(0, 1000), min_size=count - 1, max_size=count - 1)))
    return [(b - a) / 1000 for a, b in zip([0, *cuts], [*cuts, 1000], strict=True)]


@settings(max_examples=60, deadline=None)
@given(weights=shares())
def test_every_prefix_holds_every_share_to_within_one_row(weights):
    schedule = mixture(weights).schedule({}, 0)
    counts = np.zeros(len(weights))
    for row in range(1100):
        source, own = schedule.place(row)
        assert own == counts[source], "a source's rows come in their order, none twice, none left out"
        counts[source] += 1
        assert schedule.counts(row + 1) == tuple(counts)
        assert np.abs(counts - (row + 1) * np.array(weights)).max() < 1 + 1e-9


@settings(max_examples=40, deadline=None)
@given(data=st.data(), total=st.integers(1, 3000))
def test_every_stage_of_a_curriculum_holds_its_shares(data, total):
    size = data.draw(st.integers(1, 4))
    first, *others = (data.draw(shares(size)) for _ in range(data.draw(st.integers(1, 4))))
    places = sorted(data.draw(st.lists(st.integers(1, 99), min_size=len(others), max_size=len(others), unique=True)))
    curriculum = [
        {"from_progress": p / 100, "weights": {f"s{i}": w for i, w in enumerate(ws)}}
        for p, ws in zip(places, others, strict=True)
    ]
    schedule = mixture(first, curriculum).schedule({}, total)
    bounds = [stage.first_row for stage in schedule.stages] + [total]
    for number, weights in enumerate([first, *others]):
        begin, end = bounds[number], max(bounds[number], bounds[number + 1])
        seen = np.subtract(schedule.counts(end), schedule.counts(begin))
        assert seen.sum() == end - begin
        assert np.abs(seen - (end - begin) * np.array(weights)).max() < 1 + 1e-9
    assert sum(schedule.asked(total)) == pytest.approx(total)
    assert np.abs(np.subtract(schedule.counts(total), schedule.asked(total))).max() < len(schedule.stages) + 1e-9


@settings(max_examples=30, deadline=None)
@given(
    weights=shares(3), seed=st.integers(0, 3), start=st.integers(0, 60), cuts=st.lists(st.integers(1, 5), max_size=5)
)
def test_a_row_follows_from_seed_and_number_whoever_makes_it(weights, seed, start, cuts):
    whole = mixed(mixture(weights), seed=seed).rows(start, sum(cuts) + 1)
    place, parts = start, []
    for count in [*cuts, 1]:
        parts.append(mixed(mixture(weights), seed=seed).rows(place, count))  # a new object: nothing is remembered
        place += count
    for name in ("input_ids", "positions", "targets", "loss_weights"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts])), name
    sources = {int(i) // 1000 for i in whole.input_ids}
    assert sources <= {i for i, w in enumerate(weights) if w > 0}
    for row in range(len(whole.input_ids) // WIDTH):
        assert len({int(i) // 1000 for i in whole.input_ids[row * WIDTH : (row + 1) * WIDTH]}) == 1
        assert row * WIDTH in whole.cu_seqlens, "no document runs into another source's row"


def test_one_source_alone_is_its_own_rows():
    alone = PackedRows(Store(0, 20), WIDTH, 0)
    one = mixed(mixture([1.0]))
    for name, tensor in vars(alone.rows(3, 40)).items():
        assert torch.equal(tensor, getattr(one.rows(3, 40), name)), name


def test_each_token_of_a_source_comes_once_an_epoch():
    rows = mixed(mixture([0.7, 0.3]), documents=20)
    needed = math.ceil(30 / 0.7) + 1  # 30 rows are one pass over 120 tokens
    ids = rows.rows(0, needed).input_ids
    first = ids[ids < 1000][:120]
    assert sorted(first.tolist()) == list(range(120))
    assert rows.report(needed)["s0"]["epochs"] >= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-3, 1e9) | st.just(0.0), max_size=40), st.floats(1e-3, 1e9))
def test_computed_shares_are_exact_to_six_decimals_and_leave_nobody_out(amounts, one):
    amounts = [*amounts, one]
    shares = rounded_shares({str(i): a for i, a in enumerate(amounts)})
    assert sum(shares) == WHOLE
    lifted = sum(0 < a / sum(amounts) * WHOLE < 1 for a in amounts)  # so many millionths come from the largest
    for share, amount in zip(shares, amounts, strict=True):
        assert (share > 0) == (amount > 0)
        exact = amount / sum(amounts) * WHOLE
        assert -lifted - 1 - 1e-3 < share - exact < 1 + 1e-3
        assert share - exact > -1 - 1e-3 or share > WHOLE // (2 * len(amounts))


def test_largest_remainders_are_rounded_up():
    assert rounded_shares({"a": 1, "b": 1, "c": 1}, 10) == (4, 3, 3)
    assert rounded_shares({"a": 5.6, "b": 3.3, "c": 1.1}, 10) == (6, 3, 1)
    assert rounded_shares({"a": 0.001, "b": 0.001, "c": 9.998}, 10) == (1, 1, 8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(1, 1e6), st.none() | st.integers(0, WHOLE)), min_size=1, max_size=8))
def test_limited_shares_are_filled_and_the_rest_is_in_proportion(given_):
    amounts = {str(i): a for i, (a, _) in enumerate(given_)}
    limits = {str(i): most for i, (_, most) in enumerate(given_) if most is not None}
    if len(limits) == len(amounts) and sum(limits.values()) < WHOLE:
        with pytest.raises(ValueError, match="fill"):
            limited_shares(amounts, limits)
        return
    shares = dict(zip(amounts, limited_shares(amounts, limits), strict=True))
    assert sum(shares.values()) == WHOLE
    assert all(shares[name] <= most for name, most in limits.items())
    rates = {name: shares[name] / amounts[name] for name in amounts}
    free = [name for name in amounts if shares[name] < limits.get(name, WHOLE + 1)]
    for name in free:  # nobody who could have more has less for his amount than another
        assert all(
            rates[other] * amounts[name] <= shares[name] + 1 + 9 * amounts[name] / amounts[other] for other in amounts
        ), (shares, amounts, limits)


def test_epochs_and_temperature_give_shares_by_size():
    sources = {"small": {"tokens": "a"}, "large": {"tokens": "b"}}
    sizes = {"small": 100, "large": 900}

    def asked(**changes):
        values = {"sources": {n: s | changes.get(n, {}) for n, s in sources.items()}}
        return MixtureConfig.parse(values | changes.get("mixture", {})).schedule(sizes, 0).asked(1000)

    assert asked(mixture={"temperature": 1}) == pytest.approx((100, 900))
    assert asked(mixture={"temperature": 2}) == pytest.approx((250, 750))
    assert asked(mixture={"temperature": 1e9}) == pytest.approx((500, 500), abs=0.01)
    assert asked(small={"epochs": 3}, large={"epochs": 1}) == pytest.approx((250, 750))


def test_languages_share_what_a_temperature_gives_them():
    sources = {"en-web": ("en", 600), "en-books": ("en", 300), "zh": ("zh", 90), "code": (None, 10)}
    values = {n: {"tokens": n, "language": language} for n, (language, _) in sources.items()}
    config = MixtureConfig.parse({"sources": values, "temperature": 2})
    roots = [900**0.5, 90**0.5, 10**0.5]
    english, chinese, code = (root / sum(roots) * 1000 for root in roots)
    asked = config.schedule({n: size for n, (_, size) in sources.items()}, 0).asked(1000)
    assert asked == pytest.approx((english * 2 / 3, english / 3, chinese, code), abs=0.01)


def test_a_small_source_stops_at_its_epochs_and_the_others_take_the_rest():
    sizes = {"large": 900, "small": 60, "tiny": 10}
    sources = {"large": {"tokens": "l"}, "small": {"tokens": "s", "max_epochs": 4}, "tiny": {"tokens": "t"}}
    sources["tiny"]["max_epochs"] = 2.5
    config = MixtureConfig.parse({"sources": sources, "temperature": 5})
    for total in (700, 1000, 5003):
        schedule = config.schedule(sizes, total)
        assert schedule.counts(total) == pytest.approx((total - 265, 240, 25), abs=2)
        assert schedule.counts(total)[1] <= 240
        assert schedule.counts(total)[2] <= 25
    with pytest.raises(ConfigError, match=r"fill only 52\.\d+% of the run\. Train for fewer steps"):
        MixtureConfig.parse(
            {"sources": {**sources, "large": {"tokens": "l", "max_epochs": 1}}, "temperature": 5}
        ).schedule(sizes, 2200)
    curriculum = [{"from_progress": 0.5, "weights": {"large": 0.8, "small": 0.2, "tiny": 0}}]
    counts = (
        MixtureConfig.parse({"sources": sources, "temperature": 5, "curriculum": curriculum})
        .schedule(sizes, 1000)
        .counts(1000)
    )
    assert counts == pytest.approx((735, 240, 25), abs=2), "what a later stage takes is left for it"


@pytest.mark.parametrize("seed", range(2))
def test_a_thousand_sources_are_counted_as_they_come(seed):
    amounts = {f"s{i}": (i + 1 + seed) ** -1.5 for i in range(1000)}
    schedule = MixingSchedule(tuple(amounts), (MixedStage(0, rounded_shares(amounts)),))
    start = 10**6 * seed + 977 * seed
    seen = list(schedule.counts(start))
    for row in range(start, start + 2000):
        source, own = schedule.place(row)
        assert own == seen[source]
        seen[source] += 1
    assert schedule.counts(start + 2000) == tuple(seen)
    assert np.abs(np.subtract(seen, schedule.asked(start + 2000))).max() < 1


def test_a_long_pattern_is_found_at_once():
    schedule = MixingSchedule(("a", "b"), (MixedStage(0, (333_333, 666_667)),))
    rows = 10**12
    assert schedule.counts(rows) == (333_333 * 10**6, 666_667 * 10**6)
    assert schedule.place(rows)[1] in schedule.counts(rows)


def given_as(curriculum=(), temperature=None, **sources):
    named = {name: {"tokens": name} | changes for name, changes in sources.items()}
    return {"sources": named, "curriculum": list(curriculum), "temperature": temperature}


WHOLE_A = {"weight": 1.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (given_as(a={"weight": 0.5}, b={"weight": 0.4}), "sum to 0.9 and not to 1"),
        (given_as(a={"weight": 1.5}, b={"weight": -0.5}), "-0.5 of 'b' is not a share"),
        (given_as(a={"weight": 0.12345678}, b={"weight": 0.87654322}), "more than 6 decimals"),
        (given_as(a=WHOLE_A, b={}), r"\['b'\] lack a weight"),
        (given_as(a={}), "either `weight`, or `epochs`"),
        (given_as(a=WHOLE_A, temperature=2.0), "either `weight`, or `epochs`"),
        (given_as(), "at least 1 item"),
        (given_as(a={"weight": 1.0, "language": "en"}), "languages of \\['a'\\] count for a temperature alone"),
        (given_as([{"from_progress": 0.5, "weights": {"b": 1}}], a=WHOLE_A), r"differ in \['a', 'b'\]"),
        (given_as([{"from_progress": 0.5, "weights": {"a": 0.9}}], a=WHOLE_A), "sum to 0.9"),
        (
            given_as([{"from_progress": p, "weights": {"a": 1}} for p in (0.5, 0.2)], a=WHOLE_A),
            "0.2 does not follow 0.5",
        ),
    ],
)
def test_impossible_mixtures_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        MixtureConfig.parse(values)


def test_a_source_that_ends_early_is_named_before_the_run_and_in_it():
    config = mixture([0.5, 0.5], max_epochs=1.0)  # 30 rows each
    rows = mixed(config)
    rows.require(60)
    with pytest.raises(
        DataError, match=r"'s0' ends early: 31 rows are 1\.03 passes over it, and max_epochs is 1.*Lower"
    ):
        rows.require(61)
    with pytest.raises(DataError, match="ends early"):
        rows.rows(59, 3)
