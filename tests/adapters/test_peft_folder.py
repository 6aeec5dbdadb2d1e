import json
import warnings

import pytest
import torch

from lmworks.adapters import LoraConfig, LoraLinear, inject_lora, load_adapter, merge_and_unload, save_adapter
from lmworks.core.errors import CheckpointError
from lmworks.nn.attention_context import PackedContext
from lmworks.proofs.tiny import tiny_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what these libraries warn of while they are imported is not ours
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

# peft reads an attribute that the newest transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

IDS = torch.arange(12) * 7 % 131


def to_hf(name):
    return name.replace("decoder.", "model.", 1)


def ours(model):
    context = PackedContext(torch.tensor([0, 12], dtype=torch.int32))
    return model.logits(model(IDS, torch.arange(12), context))


@pytest.fixture
def model():
    return tiny_model("llama")


@pytest.fixture
def hf(model):
    """The same weights in the oracle."""
    config = LlamaConfig(
        vocab_size=131,
        hidden_size=48,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_word_embeddings=False,
    )
    oracle = LlamaForCausalLM(config).eval()
    state = {to_hf(n).replace("embed_tokens", "model.embed_tokens"): w for n, w in model.state_dict().items()}
    oracle.load_state_dict(state)
    return oracle


def shake(model):
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=8),
        LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=("q_proj", "down_proj")),
        LoraConfig(r=2, target_modules=("layers.1.self_attn.v_proj",)),
    ],
)
@torch.no_grad()
def test_peft_reads_what_we_write(model, hf, tmp_path, config):
    base = ours(model)
    save_adapter(shake(inject_lora(model, config, seed=0)), config, tmp_path, rename=to_hf, base_model="x")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = peft.PeftModel.from_pretrained(hf, tmp_path).eval()
    assert not [w for w in caught if "missing" in str(w.message)]
    expected = adapted(IDS[None]).logits[0]
    torch.testing.assert_close(ours(model), expected, atol=1e-4, rtol=1e-4)
    assert (expected - base).abs().max() > 0.1
    merged = adapted.merge_and_unload()
    for name, weight in merge_and_unload(model).decoder.named_parameters():
        torch.testing.assert_close(weight, merged.model.get_parameter(name), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "up_proj"], r".*\.[01]\.self_attn\.k_proj"])
@torch.no_grad()
def test_we_read_what_peft_writes(model, hf, tmp_path, targets):
    options = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, use_rslora=True, task_type="CAUSAL_LM")
    adapted = shake(peft.get_peft_model(hf, options)).eval()
    expected = adapted(IDS[None]).logits[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(tmp_path)
    config = load_adapter(model, tmp_path, rename=to_hf)
    assert (config.r, config.lora_alpha, config.use_rslora) == (4, 6, True)
    torch.testing.assert_close(ours(model), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_saved_and_loaded_is_the_same_adapter(model, tmp_path):
    config = LoraConfig(r=4)
    save_adapter(shake(inject_lora(model, config, seed=0)), config, tmp_path)
    other = tiny_model("llama")
    load_adapter(other, tmp_path)
    assert torch.equal(ours(other), ours(model))


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit(f, use_dora=True), "use_dora = True is not supported"),
        (lambda f: edit(f, peft_type="IA3"), "does not describe a LoRA"),
        (lambda f: edit(f, r=8), r"has shape \(4, 48\), the model needs \(8, 48\)"),
        (lambda f: (f / "adapter_config.json").unlink(), "cannot read"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\0" * 20), "cannot read"),
    ],
)
def test_adapters_that_do_not_fit_are_named(model, tmp_path, damage, message):
    config = LoraConfig(r=4, target_modules=("q_proj",))
    save_adapter(inject_lora(model, config, seed=0), config, tmp_path)
    damage(tmp_path)
    fresh = tiny_model("llama")
    with pytest.raises(CheckpointError, match=message):
        load_adapter(fresh, tmp_path)
    assert not any(isinstance(m, LoraLinear) for m in fresh.modules())


def test_an_adapter_of_another_model_is_named(model, tmp_path):
    config = LoraConfig(r=4, target_modules=("gate_proj",))
    save_adapter(inject_lora(model, config, seed=0), config, tmp_path)
    with pytest.raises(CheckpointError, match=r"no layer decoder\.layers\.0\.mlp\.gate_proj in the model"):
        load_adapter(tiny_model("gpt2"), tmp_path)
