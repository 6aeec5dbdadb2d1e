"""Intervals against closed forms, against scipy-free textbook values, and by how often they cover the truth."""

import numpy as np
import pytest

from lmworks.evals.statistics import bootstrap_mean, bootstrap_ratio, paired_difference, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_gives_the_published_values(successes, n, low, high):
    found = wilson(successes, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    assert found.value == successes / n


def test_wilson_covers_the_truth_even_for_few_items():
    generator = np.random.default_rng(0)
    for truth in (0.05, 0.5, 0.9):
        intervals = [wilson(s, 30) for s in generator.binomial(30, truth, 2000)]
        coverage = np.mean([i.low <= truth <= i.high for i in intervals])
        assert 0.92 < coverage < 0.99


def test_bootstrap_agrees_with_the_normal_interval_of_many_items():
    values = np.random.default_rng(1).normal(3, 2, 4000)
    found = bootstrap_mean(values, seed=0)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_ratio_weighs_items_by_size():
    found = bootstrap_ratio([10.0, 200.0], [10.0, 100.0], seed=0)
    assert found.value == 210 / 110
    assert found.low == pytest.approx(1.0)
    assert found.high == pytest.approx(2.0)


def test_resampling_is_a_function_of_the_seed():
    values = list(range(50))
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


def test_pairing_finds_a_difference_that_the_separate_intervals_hide():
    generator = np.random.default_rng(2)
    hardness = generator.normal(10, 5, 200)
    a, b = hardness + generator.normal(0.3, 0.2, 200), hardness
    alone_a, alone_b = bootstrap_mean(a, seed=0), bootstrap_mean(b, seed=0)
    assert alone_a.low < alone_b.high, "the separate intervals overlap"
    found = paired_difference(a, b, seed=0)
    assert found.low > 0.2
    assert found.p_value < 0.01


def test_a_difference_of_nothing_is_not_significant():
    generator = np.random.default_rng(5)
    p_values = [
        paired_difference(generator.normal(size=60), generator.normal(size=60), seed=i).p_value for i in range(200)
    ]
    assert np.mean(np.array(p_values) < 0.05) < 0.1
    assert paired_difference([1.0, 2.0], [1.0, 2.0], seed=0).p_value == 1


def test_a_single_item_has_a_point_for_an_interval():
    found = bootstrap_mean([2.5], seed=0)
    assert (found.low, found.value, found.high, found.n) == (2.5, 2.5, 2.5, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_mean([], seed=0),
        lambda: bootstrap_ratio([1.0], [0.0], seed=0),
        lambda: bootstrap_ratio([1.0, 2.0], [1.0], seed=0),
        lambda: bootstrap_ratio([1.0, 1.0], [-1.0, 2.0], seed=0),
        lambda: paired_difference([1.0, 2.0], [1.0], seed=0),
        lambda: wilson(3, 2),
        lambda: wilson(0, 0),
    ],
)
def test_impossible_figures_are_refused(call):
    with pytest.raises(ValueError, match=r"need|same items|sizes"):
        call()
