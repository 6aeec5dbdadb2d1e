"""Learning-rate schedules: end points, monotony, oracles."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmworks.core.errors import ConfigError
from lmworks.optim.schedules import ScheduleConfig, learning_rate_factor

KINDS = ["cosine", "linear", "constant", "wsd"]


@pytest.mark.parametrize("kind", KINDS)
@given(steps=st.integers(1, 300), warmup=st.integers(0, 300), floor=st.floats(0, 1))
def test_rises_to_the_peak_then_never_rises_again(kind: str, steps: int, warmup: int, floor: float):
    warmup = min(warmup, steps)
    schedule = ScheduleConfig(kind=kind, warmup_steps=warmup, min_lr_ratio=floor, decay_fraction=0.3)
    values = [learning_rate_factor(schedule, step, steps) for step in range(steps)]
    assert all(0 < v <= 1 or (v == 0 and floor == 0) for v in values)
    assert values[:warmup] == [(i + 1) / warmup for i in range(warmup)]
    after = values[warmup:]
    assert all(b <= a for a, b in itertools.pairwise(after))
    assert all(v >= floor - 1e-12 for v in after)


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_decaying_shapes_reach_the_floor_at_the_end(kind: str):
    schedule = ScheduleConfig(kind=kind, warmup_steps=10, min_lr_ratio=0.1)
    assert learning_rate_factor(schedule, 100, 100) == pytest.approx(0.1)
    assert learning_rate_factor(schedule, 10, 100) == pytest.approx(1.0)


def test_cosine_equals_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        ours = learning_rate_factor(ScheduleConfig(kind="cosine"), step, 50)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        theirs.step()


def test_wsd_is_flat_until_its_decay():
    schedule = ScheduleConfig(kind="wsd", warmup_steps=5, decay_fraction=0.25)
    values = [learning_rate_factor(schedule, step, 100) for step in range(100)]
    assert values[5:76] == [1.0] * 71
    assert values[80] == pytest.approx(0.8)
    assert math.isclose(values[99], 1 / 25)


@pytest.mark.parametrize(("share", "warmup"), [(1.0, 5), (0.9, 30), (0.5, 99)])
def test_wsd_decays_from_its_peak_however_late_the_warm_up_ends(share: float, warmup: int):
    schedule = ScheduleConfig(kind="wsd", warmup_steps=warmup, decay_fraction=share)
    values = [learning_rate_factor(schedule, step, 100) for step in range(101)]
    assert values[warmup] == 1.0
    assert [a - b for a, b in itertools.pairwise(values[warmup:])] == pytest.approx(
        [1 / (100 - warmup)] * (100 - warmup)
    )


def values_of(steps: int = 60, **fields: object) -> list[float]:
    schedule = ScheduleConfig(**fields)
    return [learning_rate_factor(schedule, step, steps) for step in range(steps)]


def torch_values(make, steps: int = 60) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, values = make(optimizer), []
    for _ in range(steps):
        values.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return values


def test_steps_equal_torch():
    theirs = torch_values(lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=7, gamma=0.5))
    assert values_of(kind="step", step_size=7, gamma=0.5) == pytest.approx(theirs)


def test_restarts_equal_torch():
    theirs = torch_values(lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=13, eta_min=0.1))
    assert values_of(kind="cosine_restarts", cycle_steps=13, min_lr_ratio=0.1) == pytest.approx(theirs)


def test_cycles_equal_torch():
    # torch begins a cycle at the floor, ours at the peak: half a cycle apart.
    theirs = torch_values(
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.2, 1.0, step_size_up=5, cycle_momentum=False), 65
    )
    assert values_of(kind="cyclic", cycle_steps=10, min_lr_ratio=0.2) == pytest.approx(theirs[5:])


def test_inverse_sqrt_equals_transformers():
    from transformers import get_inverse_sqrt_schedule

    theirs = torch_values(lambda o: get_inverse_sqrt_schedule(o, num_warmup_steps=9))
    ours = values_of(kind="inverse_sqrt", warmup_steps=9)
    assert ours[9:] == pytest.approx(theirs[9:])
    assert ours[8] == ours[9] == 1.0  # the first update of our warm-up already moves


def test_shapes_count_from_the_end_of_the_warm_up():
    ours = values_of(kind="step", step_size=4, gamma=0.5, warmup_steps=3)
    assert ours[3:12] == [1.0] * 4 + [0.5] * 4 + [0.25]


def test_an_unknown_shape_is_refused():
    with pytest.raises(ConfigError, match="kind = 'zigzag'"):
        ScheduleConfig.parse({"kind": "zigzag"})


@pytest.mark.parametrize(("kind", "field"), [("step", "step_size"), ("cyclic", "cycle_steps")])
def test_a_shape_without_its_length_is_refused(kind: str, field: str):
    with pytest.raises(ConfigError, match=f"needs {field}"):
        ScheduleConfig.parse({"kind": kind})
