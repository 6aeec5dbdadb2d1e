"""Layers that take turns in two places compute what they compute at home. Streams are tested on a GPU only."""

from __future__ import annotations

import pytest
import torch
from tiny_engine import byte_tokenizer, full_logits, random_prompts, tiny_model
from torch import nn

from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM
from lmworks.engine.weights.layer_offload import LayerOffload
from lmworks.models.config import StackConfig
from lmworks.models.hub import save_pretrained
from lmworks.nn.quantized import QuantizedLinear

CPU = torch.device("cpu")


def deep(family="llama"):
    config = tiny_model(family).config
    assert isinstance(config.decoder, StackConfig)
    return tiny_model(family, decoder=config.decoder.model_copy(update={"num_hidden_layers": 5})).eval()


def layer_bytes(layer):
    return sum(p.nbytes for p in layer.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kept_aside", range(6))
def test_logits_are_the_same(family, kept_aside):
    plain, model = deep(family), deep(family)
    layers = model.decoder.layers
    offload = LayerOffload(list(layers), CPU, kept_aside * layer_bytes(layers[0]))
    assert offload.num_layers == kept_aside
    for prompt in random_prompts([5, 9, 3]):  # the second round finds what the first left behind
        assert torch.equal(full_logits(model, prompt), full_logits(plain, prompt))


def test_at_most_two_layers_lie_in_places():
    model = deep()
    layers = list(model.decoder.layers)
    whole = layer_bytes(layers[0])
    offload = LayerOffload(layers, CPU, 10**12)
    assert offload.num_layers == 5
    places = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.decoder.layers.parameters()}
    assert len(places) == 2
    assert sum(places.values()) < 2.2 * whole


def test_layers_of_several_sizes_and_grids():
    torch.manual_seed(0)
    plain = [nn.Linear(16, 64), nn.Linear(64, 16), nn.Linear(16, 64, bias=False), nn.Linear(64, 16)]
    plain[1] = QuantizedLinear.from_linear(plain[1], bits=4, group_size=32)
    x = torch.randn(3, 16)
    expected = nn.Sequential(*plain)(x)
    LayerOffload(plain, CPU, 10**9)
    assert torch.equal(nn.Sequential(*plain)(x), expected)
    assert torch.equal(nn.Sequential(*plain)(x), expected)


def test_on_a_cpu_there_is_nothing_to_offload(tmp_path, caplog):
    save_pretrained(tiny_model(), tmp_path)
    byte_tokenizer().save(tmp_path)
    assert LLM(tmp_path, cpu_offload_gb=1).generate([[5, 6]], SamplingParams(max_tokens=2))
    assert "cpu_offload_gb has no effect" in caplog.text
