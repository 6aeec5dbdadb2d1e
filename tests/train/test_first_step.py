"""Before anything is learned every family guesses evenly, with weights as wide as its configuration says."""

import math

import pytest
import torch

from lmworks.models.build import build_model
from lmworks.nn.batch import next_token_document, pack
from lmworks.objectives.causal_lm import causal_lm
from lmworks.train.model_preset import ModelPreset

VOCAB, LAYERS = 2000, 4


def built(preset: str) -> torch.nn.Module:
    sizes = ModelPreset(preset=preset, hidden_size=64, num_hidden_layers=LAYERS, num_attention_heads=4)
    config = sizes.to_model_config(vocab_size=VOCAB, sequence_length=64, bos_token_id=0, eos_token_ids=(1,))
    return build_model(config, seed=0)


@pytest.mark.parametrize("preset", ["llama", "qwen3", "gpt2", "mixtral"])
def test_the_first_loss_is_the_logarithm_of_the_vocabulary(preset: str):
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(0, VOCAB, (64,), generator=generator).tolist() for _ in range(8)]
    loss = causal_lm(built(preset), pack([next_token_document(ids) for ids in documents]))
    assert float(loss.loss_sum.detach() / loss.n_targets) == pytest.approx(math.log(VOCAB), abs=0.05)


@pytest.mark.parametrize("preset", ["llama", "qwen3", "gpt2", "mixtral"])
def test_matrices_have_the_same_width_in_every_layer(preset: str):
    widths: dict[str, list[float]] = {}
    for name, parameter in built(preset).named_parameters():
        _, _, inside = name.partition(".layers.")
        if parameter.ndim > 1 and inside:
            assert abs(float(parameter.detach().mean())) < 4 * 0.02 / math.sqrt(parameter.numel())
            widths.setdefault(inside.partition(".")[2], []).append(float(parameter.detach().std()))
    assert widths
    for kind, by_layer in widths.items():
        assert len(by_layer) == LAYERS, kind
        assert max(by_layer) / min(by_layer) < 1.25, kind
        assert 0.25 * 0.02 < min(by_layer) <= max(by_layer) < 1.2 * 0.02, kind
