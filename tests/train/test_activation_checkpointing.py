"""Activation checkpointing: the same gradient bits, fewer kept tensors, and nothing left behind."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from test_moe_training import moe_config
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from train_case import same_weights, tiny_config, tiny_model, tiny_rows, tiny_trainer

from lmworks.core.errors import ConfigError
from lmworks.kernels.native.training import training_library
from lmworks.models.build import build_model
from lmworks.objectives.causal_lm import causal_lm
from lmworks.train.activation_checkpointing import recomputing
from lmworks.train.float8 import computing_in_float8
from lmworks.train.moe import balanced


def kept_bytes(model: nn.Module, mode: str) -> tuple[int, torch.Tensor]:
    """Bytes that the forward pass keeps for the backward pass, parameters aside, and the gradient."""
    own = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    objective = balanced(causal_lm, model.config, 1e-3)
    with recomputing(model, mode), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.manual_seed(0)
        loss = objective(model, tiny_rows(tiny_config()).rows(0, 4))
        before = sum(kept.values())
        loss.loss_sum.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return before, gradient


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_gradients_keep_every_bit_and_less_is_kept(mode: str):
    model = tiny_model()
    plain_bytes, plain = kept_bytes(model, "none")
    fewer_bytes, again = kept_bytes(model, mode)
    assert torch.equal(plain, again)
    assert fewer_bytes < 0.7 * plain_bytes


class Operations(TorchDispatchMode):
    """Counts what is computed, by the names of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def computed_again(mode: str, *, dtype: torch.dtype = torch.bfloat16, float8: bool = False) -> Counter[str]:
    """Operations that the backward pass makes more of than without recomputation."""
    batch, counts = tiny_rows(tiny_config()).rows(0, 4), []
    for tried in ("none", mode):
        model = tiny_model(hidden_size=64).to(dtype)
        with recomputing(model, tried), computing_in_float8(model) if float8 else nullcontext():
            loss = causal_lm(model, batch)
            with Operations() as counter:
                loss.loss_sum.backward()
        counts.append(counter.counts)
    return counts[1] - counts[0]


LAYERS, PRODUCTS = 2, 7
"""Of the model; its products in a layer."""


@pytest.mark.skipif(training_library() is None, reason="no compiler for the native operations")
def test_selective_keeps_the_native_attention_and_every_second_product():
    attention, product = "lmworks.causal_attention.default", "aten.mm.default"
    assert computed_again("full")[attention] == LAYERS
    selective = computed_again("selective")
    assert selective[attention] == 0
    assert selective[product] == LAYERS * (PRODUCTS // 2)
    assert selective["lmworks.rms_norm.default"] == 2 * LAYERS


def test_selective_keeps_every_second_8_bit_product():
    assert computed_again("selective", float8=True)["aten._scaled_mm.default"] == LAYERS * (PRODUCTS // 2)


def test_routing_losses_are_recomputed_too():
    model = build_model(moe_config(router_aux_loss_coef=0.5, router_z_loss_coef=0.5), seed=0)
    assert torch.equal(kept_bytes(model, "none")[1], kept_bytes(model, "full")[1])


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_a_run_ends_in_the_same_bits_and_the_model_is_as_before(tmp_path: Path, mode: str):
    plain = tiny_trainer(tmp_path / "plain", precision="bfloat16")
    plain.fit()
    other = tiny_trainer(tmp_path / mode, precision="bfloat16", activation_checkpointing=mode)
    other.fit()
    assert same_weights(plain.model, other.model)
    assert all("forward" not in vars(module) for module in other.working.model.modules())


def test_a_model_without_layers_is_refused():
    with (
        pytest.raises(ConfigError, match="module list called 'layers'"),
        recomputing(nn.Sequential(nn.Linear(2, 2)), "full"),
    ):
        pass
