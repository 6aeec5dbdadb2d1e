"""The average of the weights: torch's, its state, and its place in the model."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lmworks.core.errors import CheckpointError
from lmworks.optim.averaging import WeightAverage


def wander(model: nn.Module, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g))


def model_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_equals_torchs_once_warm():
    model = model_of()
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    ours = WeightAverage(model, 0.9)
    theirs.update_parameters(model)  # takes over the first weights
    for step in range(200, 210):
        wander(model, step)
        ours.update(step)
        theirs.update_parameters(model)
    for (name, average), expected in zip(ours.state_dict().items(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(average, expected, msg=name)


def test_forgets_its_beginning_soon():
    model = model_of()
    average = WeightAverage(model, 0.999)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    for step in range(20):
        average.update(step)
    assert all((v - 1).abs().max() < 1e-2 for v in average.state_dict().values())


def test_state_goes_on_bit_for_bit():
    one, other = model_of(), model_of(1)
    first, second = WeightAverage(one, 0.99), WeightAverage(other, 0.99)
    wander(one, 0)
    first.update(0)
    other.load_state_dict(one.state_dict())
    second.load_state_dict(first.state_dict())
    for model, average in ((one, first), (other, second)):
        wander(model, 1)
        average.update(1)
    assert all(torch.equal(a, second.state_dict()[name]) for name, a in first.state_dict().items())


def test_is_in_the_model_only_while_asked():
    model = model_of()
    average = WeightAverage(model, 0.9)
    kept = {k: v.clone() for k, v in average.state_dict().items()}
    wander(model, 0)
    own = {k: v.clone() for k, v in model.state_dict().items()}
    with average.in_place():
        assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, kept[k]) for k, v in average.state_dict().items())


def test_frozen_weights_are_not_averaged():
    model = model_of()
    model[0].requires_grad_(False)
    assert list(WeightAverage(model, 0.9).state_dict()) == ["1.weight", "1.bias"]


def test_the_average_of_another_model_is_refused():
    with pytest.raises(CheckpointError, match=r"1\.bias"):
        WeightAverage(model_of(), 0.9).load_state_dict({"0.weight": torch.zeros(4, 3)} | {
            k: v for k, v in WeightAverage(model_of(), 0.9).state_dict().items() if k != "1.bias"
        })  # fmt: skip
