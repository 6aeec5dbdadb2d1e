"""Our logits and gradients are transformers', through folders written by either side."""

import json

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from lmworks.models.hub import load_pretrained, read_config, save_pretrained
from lmworks.nn.attention_context import PackedContext

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
CASES = {
    "llama-tied": ("Llama", {**SIZES, "tie_word_embeddings": True}),
    "llama-untied-llama3": ("Llama", {**SIZES, "rope_parameters": LLAMA3, "eos_token_id": [2, 3]}),
    "llama-biases-wide-heads": ("Llama", {**SIZES, "attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "mistral": ("Mistral", {**SIZES, "sliding_window": None}),
    "qwen2": ("Qwen2", {**SIZES, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 16}),
    "gpt2": ("GPT2", {"vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128,
                      "bos_token_id": 1, "eos_token_id": 2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}),
    "gpt2-untied": ("GPT2", {"vocab_size": 97, "n_embd": 48, "n_layer": 1, "n_head": 2, "n_positions": 128,
                             "n_inner": 56, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}),
}  # fmt: skip


@pytest.fixture(params=CASES)
def theirs(request):
    name, sizes = CASES[request.param]
    torch.manual_seed(0)
    model_class = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    model = getattr(transformers, model_class)(getattr(transformers, f"{name}Config")(**sizes)).eval()
    for parameter in model.parameters():  # far from the initialization, where biases are 0 and norms 1
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def logits(model, ids):
    context = PackedContext(torch.tensor([0, len(ids)], dtype=torch.int32))
    return model.logits(model(ids, torch.arange(len(ids)), context))


def rotation(model):
    """Cosines at far positions, which speeds in half precision would get wrong."""
    return model.decoder.position_codes[0](torch.arange(100, 128), None, torch.float32).rotation.cos


@pytest.fixture
def ids():
    return torch.randint(97, (100,), generator=torch.Generator().manual_seed(1))


def test_logits_and_gradients_agree(theirs, ids, tmp_path):
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path)
    ours_logits, theirs_logits = logits(ours, ids), theirs(ids[None]).logits[0]
    torch.testing.assert_close(ours_logits, theirs_logits, atol=1e-5, rtol=1e-5)
    for values in (ours_logits, theirs_logits):
        torch.nn.functional.cross_entropy(values[:-1], ids[1:]).backward()
    theirs_embedding = theirs.get_input_embeddings().weight.grad
    torch.testing.assert_close(ours.embed_tokens.weight.grad, theirs_embedding, atol=1e-5, rtol=1e-4)
    assert all(p.grad is not None for p in ours.parameters())


def test_our_folder_gives_transformers_the_same_logits(theirs, ids, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(tmp_path / "theirs")
    save_pretrained(ours, tmp_path / "ours")
    reread = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(reread(ids[None]).logits, theirs(ids[None]).logits, atol=1e-5, rtol=1e-5)
        again = load_pretrained(tmp_path / "ours")
        assert torch.equal(logits(again, ids), logits(ours, ids))
    assert again.config == ours.config == read_config(tmp_path / "ours")
    assert reread.generation_config.eos_token_id == theirs.generation_config.eos_token_id


def test_a_tied_head_is_one_matrix_and_not_stored(theirs, tmp_path):
    from safetensors import safe_open

    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained(tmp_path / "theirs")
    save_pretrained(ours, tmp_path / "ours")
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    tied = ours.config.tie_word_embeddings
    assert (ours.lm_head.weight is ours.embed_tokens.weight) == tied
    assert ("lm_head.weight" in stored) != tied
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_files_of_the_bare_model_lack_the_prefix(theirs, ids, tmp_path):
    """The original GPT-2 files name `h.0.attn…`, not `transformer.h.0.attn…`."""
    from safetensors.torch import load_file, save_file

    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    prefix = theirs.base_model_prefix + "."
    save_file({n.removeprefix(prefix): t for n, t in load_file(file).items()}, file)
    with torch.no_grad():
        torch.testing.assert_close(
            logits(load_pretrained(tmp_path), ids), theirs(ids[None]).logits[0], atol=1e-5, rtol=1e-5
        )


def test_dtype_is_the_stored_one_unless_asked(tmp_path, ids):
    config = transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3)
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    assert load_pretrained(tmp_path).dtype == torch.bfloat16
    wide = load_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    narrow = load_pretrained(tmp_path)
    assert torch.equal(rotation(narrow), rotation(wide))
    save_pretrained(wide, tmp_path / "half", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert torch.equal(logits(load_pretrained(tmp_path / "half"), ids), logits(narrow, ids))


def test_casting_a_model_keeps_the_rotary_speeds(tmp_path):
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    before = rotation(model)
    assert torch.equal(rotation(model.bfloat16()), before)
    assert model.dtype == torch.bfloat16


VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip


@pytest.mark.parametrize("layout", ["model.language_model.", "language_model.model."])
def test_gemma_3_with_images_is_read_as_its_language_model(layout, ids, tmp_path):
    from safetensors.torch import load_file, save_file

    text = {**SIZES, "head_dim": 12, "num_hidden_layers": 3, "sliding_window": 9, "sliding_window_pattern": 3,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0}}  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_index=9
    )
    torch.manual_seed(0)
    theirs = transformers.Gemma3ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    stem = next(name for name in tensors if name.endswith("embed_tokens.weight")).removesuffix("embed_tokens.weight")
    save_file({n.replace(stem, layout): t for n, t in tensors.items()}, file)
    ours = load_pretrained(tmp_path)
    assert ours.config.family == "gemma3_text"
    prompt = ids[(ids != 9)]
    with torch.no_grad():
        torch.testing.assert_close(logits(ours, prompt), theirs(prompt[None]).logits[0], atol=1e-5, rtol=1e-5)
        save_pretrained(ours, tmp_path / "text")
        reread = AutoModelForCausalLM.from_pretrained(tmp_path / "text").eval()
        torch.testing.assert_close(reread(prompt[None]).logits, theirs(prompt[None]).logits, atol=1e-5, rtol=1e-5)
