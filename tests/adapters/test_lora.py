import pytest
import torch

from lmworks.adapters import LoraConfig, LoraLinear, inject_lora, merge_and_unload
from lmworks.core.errors import ConfigError
from lmworks.nn.attention_context import PackedContext
from lmworks.proofs.tiny import tiny_model

IDS, POSITIONS = torch.arange(12) * 7 % 131, torch.arange(12)


def logits(model):
    context = PackedContext(torch.tensor([0, 12], dtype=torch.int32))
    return model.logits(model(IDS, POSITIONS, context))


def shake(model):
    """Give the adapters something to say."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            torch.nn.init.normal_(module.lora_B.weight, std=0.3, generator=generator)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("use_rslora", [False, True])
@torch.no_grad()
def test_injecting_changes_nothing_and_merging_keeps_what_was_learned(family, use_rslora):
    model = tiny_model(family)
    before, names = logits(model), list(model.state_dict())
    config = LoraConfig(r=4, lora_alpha=8, use_rslora=use_rslora)
    inject_lora(model, config, seed=0)
    assert torch.equal(logits(model), before)
    learned = logits(shake(model))
    assert (learned - before).abs().max() > 0.1
    merge_and_unload(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(logits(model), learned, atol=1e-4, rtol=1e-5)
    assert all(p.requires_grad for p in model.parameters())


def test_only_adapters_learn():
    model = inject_lora(tiny_model("llama"), LoraConfig(r=4), seed=0)
    shake(model)
    logits(model).square().mean().backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained == {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 3 * 7 * 2
    assert all(".lora_" in name for name in trained)


def test_a_seed_fixes_the_first_values():
    first, second, other = (inject_lora(tiny_model("llama"), LoraConfig(), seed=s) for s in (1, 1, 2))
    name = "decoder.layers.2.mlp.down_proj.lora_A.weight"
    assert torch.equal(first.get_parameter(name), second.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_dropout_acts_in_training_only():
    model = shake(inject_lora(tiny_model("llama"), LoraConfig(lora_dropout=0.5), seed=0))
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_adapters_of_a_bf16_model_stay_float32_and_merge_once_rounded():
    model = tiny_model("llama").bfloat16()
    weight = model.decoder.layers[0].self_attn.q_proj.weight.float()
    shake(inject_lora(model, LoraConfig(r=4), seed=0))
    layer = model.decoder.layers[0].self_attn.q_proj
    assert layer.lora_A.weight.dtype == torch.float32
    assert logits(model).dtype == torch.bfloat16
    expected = (weight + layer.scaling * layer.lora_B.weight @ layer.lora_A.weight).bfloat16()
    merge_and_unload(model)
    assert torch.equal(model.decoder.layers[0].self_attn.q_proj.weight, expected)


@pytest.mark.parametrize(
    ("targets", "count"),
    [(("q_proj", "v_proj"), 6), (("layers.1.mlp.up_proj",), 1), (("lm_head",), 1), ("all-linear", 21)],
)
def test_targets_select_by_the_end_of_the_name(targets, count):
    model = inject_lora(tiny_model("llama"), LoraConfig(target_modules=targets))
    assert sum(isinstance(m, LoraLinear) for m in model.modules()) == count


def test_bad_targets_are_named():
    with pytest.raises(ConfigError, match=r"'q_porj' names no linear layer \(did you mean 'q_proj'\?\)"):
        inject_lora(tiny_model("llama"), LoraConfig(target_modules=("q_porj",)))
    with pytest.raises(ConfigError, match="adapters already"):
        inject_lora(inject_lora(tiny_model("llama"), LoraConfig()), LoraConfig())
    with pytest.raises(ConfigError, match="r = 0"):
        LoraConfig.parse({"r": 0})
