"""Agreement of annotators is measured as published."""

import random

import pytest
from sklearn.metrics import cohen_kappa_score

from lmworks.data.labels.agreement import agreement, cohen_kappa, fleiss_kappa, krippendorff_alpha, percent_agreement

RATINGS = {  # Krippendorff 2011, section C: four observers, twelve units, some without a value
    "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    "C": [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
}
FLEISS = [  # Fleiss 1971 as worked in the literature: ten subjects, fourteen raters, five categories
    (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
]  # fmt: skip


def test_measures_are_the_published_ones():
    units = [[values[n] for values in RATINGS.values() if values[n] is not None] for n in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(units, lambda a, b: (a - b) ** 2) == pytest.approx(0.849, abs=5e-4)
    subjects = [[category for category, count in enumerate(row) for _ in range(count)] for row in FLEISS]
    assert fleiss_kappa(subjects) == pytest.approx(0.210, abs=5e-4)
    assert percent_agreement(subjects) == pytest.approx(0.378, abs=5e-4)
    chance = random.Random(0)
    for _ in range(20):
        one, other = ([chance.choice("abt") for _ in range(25)] for _ in range(2))
        assert cohen_kappa(one, other) == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)


def test_measures_that_say_nothing_are_none():
    alike = agreement({n: {"A": "tie", "B": "tie"} for n in range(3)})
    assert (alike.percent, alike.fleiss, alike.alpha) == (1.0, None, None)
    assert alike.cohen == {("A", "B"): None}
    alone = agreement({1: {"A": "first"}, 2: {"B": "second"}})
    assert (alone.percent, alone.fleiss, alone.alpha, alone.cohen, alone.doubly) == (None, None, None, {}, 0)
    assert agreement({}).labels == 0
    opposed = agreement({n: {"A": "first", "B": "second"} for n in range(4)})
    assert opposed.alpha < 0
    assert opposed.fleiss == -1
