"""Images as packed documents: what they share with texts, what a stack of their own is given, what is refused."""

import pytest
import torch
import transformers
from click.testing import CliRunner
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from lmworks.cli.main import cli
from lmworks.core.errors import ConfigError
from lmworks.engine import LLM
from lmworks.engine.pooling.embedder import Embedder
from lmworks.models.accounting import flops_per_token, parameters
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.families.presets import preset_named
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.nn.attention_context import PackedContext

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40,
         "image_size": 20, "patch_size": 6}  # fmt: skip
HEADS = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8}
STACK = {"num_hidden_layers": 3, "attention": HEADS, "mlp": {"intermediate_size": 40, "gated": False}, "causal": False,
         "norm": {"kind": "layer"}}  # fmt: skip


def config(*, vision=None, **changes):
    sizes = {"vocab_size": 0, "hidden_size": 24, "max_position_embeddings": 10, "head": {"kind": "embedding"}}
    own = {"hidden_size": 24, "image_size": 20, "patch_size": 6, "stack": STACK, **(vision or {})}
    return ModelConfig.model_validate({**sizes, "vision": own, **changes})


def images(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def reference(tmp_path, architecture, configuration):
    torch.manual_seed(0)
    theirs = getattr(transformers, architecture)(configuration).eval()
    for parameter in theirs.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2 + (parameter.data == 1)
    theirs.save_pretrained(tmp_path)
    return theirs


def test_images_of_any_sizes_are_packed_and_do_not_see_each_other():
    model = build_model(config(), seed=0)
    several = images((20, 20), (13, 31), (6, 8))
    hidden, bounds = model.encode_images(several)
    assert bounds.tolist() == [0, 10, 10 + 1 + 2 * 5, 21 + 1 + 1]
    assert bounds.dtype == torch.int32
    for image, begin, end in zip(several, bounds, bounds[1:], strict=False):
        torch.testing.assert_close(hidden[begin:end], model.encode_images(image[None])[0])
    batch = torch.stack(images((20, 20), (20, 20)))
    assert torch.equal(model.encode_images(batch)[0], model.encode_images(list(batch))[0])


def test_patches_see_later_ones_and_the_pixels_of_their_own_place():
    model = build_model(config(), seed=0)
    (image,) = images((20, 20))
    changed = image.clone()
    changed[:, 13, 13] += 1  # in the last patch
    before, after = (model.patches([i])[0] for i in (image, changed))
    assert [row for row in range(10) if not torch.equal(before[row], after[row])] == [9]
    before, after = (model.encode_images([i])[0] for i in (image, changed))
    assert bool((before != after).any(-1).all())
    changed = image.clone()
    changed[:, 18:, 18:] += 1  # 20 pixels hold three patches of 6
    assert torch.equal(model.encode_images([image])[0], model.encode_images([changed])[0])


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("tokens", ["default", "full"])
def test_features_are_the_hidden_states_that_llava_selects(tmp_path, layer, tokens):
    theirs = reference(tmp_path, "CLIPVisionModel", transformers.CLIPVisionConfig(**SIZES))
    loaded = load_pretrained(tmp_path)
    selection = {"vision_feature_layer": layer, "vision_feature_select_strategy": tokens}
    vision = loaded.config.vision.model_copy(update=selection)
    model = build_model(loaded.config.model_copy(update={"vision": vision}))
    model.load_state_dict(loaded.state_dict())
    pixels = torch.stack(images((20, 20), (20, 20)))
    hidden, bounds = model.encode_images(pixels)
    states = theirs(pixels, output_hidden_states=True).hidden_states[layer]
    expected = states[:, 1:] if tokens == "default" else states
    torch.testing.assert_close(hidden.view_as(expected), expected, atol=1e-5, rtol=0)
    assert bounds.tolist() == [0, expected.shape[1], 2 * expected.shape[1]]


def test_the_penultimate_layer_is_taken_before_the_final_norm():
    model = build_model(config(vision={"vision_feature_layer": -2}), seed=0)
    whole = build_model(config(), seed=0)
    whole.vision.layers[2] = torch.nn.Identity()
    whole.vision.layers[2].forward = lambda x, *_: x
    whole.vision.norm = None
    pixels = torch.stack(images((20, 20)))
    assert torch.equal(model.encode_images(pixels)[0], whole.encode_images(pixels)[0])


@pytest.mark.parametrize("architecture", ["CLIPVisionModel", "CLIPTextModel"])
def test_the_vector_of_a_document_is_clips_pooled_output(tmp_path, architecture):
    if architecture == "CLIPVisionModel":
        theirs = reference(tmp_path, architecture, transformers.CLIPVisionConfig(**SIZES))
        pixels = torch.stack(images((20, 20), (20, 20)))
        expected = theirs(pixels).pooler_output
        model = load_pretrained(tmp_path)
        found = model.embed_documents(*model.encode_images(pixels))
    else:
        sizes = {k: v for k, v in SIZES.items() if k not in ("image_size", "patch_size")}
        told = transformers.CLIPTextConfig(**sizes, vocab_size=50, bos_token_id=48, eos_token_id=49)
        theirs = reference(tmp_path, architecture, told)
        ids = torch.tensor([[48, 3, 9, 49], [48, 7, 7, 49]])
        expected = theirs(ids).pooler_output
        model, bounds = load_pretrained(tmp_path), torch.tensor([0, 4, 8], dtype=torch.int32)
        hidden = model(ids.flatten(), torch.arange(4).repeat(2), PackedContext(bounds))
        found = model.embed_documents(hidden, bounds)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_files_of_earlier_versions_are_read(tmp_path):
    """With a prefix and a buffer of positions (CLIP), and without the pooler (DINO's ViT)."""
    theirs = reference(tmp_path, "CLIPVisionModel", transformers.CLIPVisionConfig(**SIZES))
    stored = {f"vision_model.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    stored["vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    save_file(stored, tmp_path / "model.safetensors")
    pixels = torch.stack(images((20, 20)))
    hidden = load_pretrained(tmp_path).encode_images(pixels)[0]
    torch.testing.assert_close(hidden, theirs(pixels).last_hidden_state[0], atol=1e-5, rtol=0)

    reference(tmp_path, "ViTModel", transformers.ViTConfig(**SIZES))
    stored = load_file(tmp_path / "model.safetensors")
    assert load_pretrained(tmp_path).config.head.pooler
    save_file({n: t for n, t in stored.items() if "pooler" not in n}, tmp_path / "model.safetensors")
    assert not load_pretrained(tmp_path).config.head.pooler


def test_published_sizes():
    """Totals from the papers' checkpoints; CLIP's has one more number, the scale of its logits."""
    totals = {
        "vit-base-patch16-224": 86_567_656, "vit-large-patch16-224": 304_326_632,
        "dinov2-base": 86_580_480 - 768,  # less the vector of masked patches
    }  # fmt: skip
    assert {name: parameters(preset_named(name)).total for name in totals} == totals
    towers = (f"clip-vit-base-patch32-{tower}" for tower in ("vision", "text"))
    assert sum(parameters(preset_named(name)).total for name in towers) + 1 == 151_277_313


VARIANTS = {
    "plain": config(),
    "no class, no bias, norm before": config(
        vision={"class_token": False, "patch_bias": False, "norm": {"kind": "layer"}}, max_position_embeddings=9
    ),
    "projected": config(head={"kind": "projection", "projection_dim": 7, "pooling": "cls", "pooled_norm": True}),
    "labels": config(head={"kind": "sequence_classification", "num_labels": 4, "pooling": "cls"}),
    "beside a decoder of another width": config(
        vocab_size=50, hidden_size=12, max_position_embeddings=64, head={"kind": "causal_lm"},
        vision={"num_channels": 1}, decoder={**STACK, "causal": True, "attention": {**HEADS, "head_dim": 4}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_counted(name):
    model = build_model(VARIANTS[name], seed=0)
    assert parameters(VARIANTS[name]).total == sum(p.numel() for p in model.parameters())
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_operations_are_those_torch_counts(monkeypatch):
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention",
        lambda q, k, v, attn_mask=None, is_causal=False, scale=None: (q @ k.mT * scale).softmax(-1) @ v,
    )  # fmt: skip
    model = build_model(config(vision={"class_token": False}, max_position_embeddings=9), seed=0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode_images(images((20, 20)))
    assert counter.get_total_flops() == 9 * flops_per_token(model.config, 9).total


def test_weights_are_drawn_reproducibly_and_leave_the_global_generator_alone():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    for initialization in ("depth_scaled", "t_fixup"):
        one, other = (build_model(config(initialization=initialization), seed=3) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_pixels_take_the_type_of_the_weights():
    model = build_model(config(), seed=0).to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.encode_images(images((20, 20), (25, 14)))[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        ([], "no images"),
        (torch.zeros(0, 3, 20, 20), "no images"),
        (torch.zeros(3, 20, 20), r"shape \[20, 20\] is not \[3, height, width\]"),
        (torch.zeros(2, 1, 20, 20), r"shape \[1, 20, 20\]"),
        ([torch.zeros(3, 20, 5)], "at least 6 pixels each way"),
    ],
)
def test_images_of_another_shape_are_refused(pixels, told):
    with pytest.raises(ConfigError, match=told):
        build_model(config(), seed=0).encode_images(pixels)


def test_models_of_images_and_of_texts_are_told_apart():
    model, bounds = build_model(config(), seed=0), torch.tensor([0, 2], dtype=torch.int32)
    with pytest.raises(ConfigError, match="reads images, not tokens"):
        model(torch.tensor([1, 2]), torch.arange(2), PackedContext(bounds))
    with pytest.raises(ConfigError, match="no texts to embed"):
        Embedder(model, lambda texts: [[1] for _ in texts])
    text = config(vocab_size=50, decoder={**STACK, "causal": True}, head={"kind": "causal_lm"})
    with pytest.raises(ConfigError, match="reads no images"):
        build_model(text.model_copy(update={"vision": None}), seed=0).encode_images(images((20, 20)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vision": None}, "an encoder, a decoder or vision"),
        ({"vocab_size": 5}, "vocab_size is 5"),
        ({"hidden_size": 32}, r"must be \(24, 10\)"),
        ({"head": {"kind": "causal_lm"}}, "needs a vocabulary"),
        ({"decoder": {**STACK, "causal": True}}, "vocab_size is 0"),
    ],
)
def test_impossible_models_are_refused(changes, told):
    with pytest.raises(ValidationError, match=told):
        ModelConfig.model_validate({**config().to_dict(), **changes})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"patch_size": 21}, "patch_size 21 exceeds image_size 20"),
        ({"stack": {**STACK, "causal": True}}, "patches see each other"),
        ({"stack": {**STACK, "num_hidden_layers": 1}, "vision_feature_layer": -2}, "needs two layers"),
    ],
)
def test_impossible_vision_is_refused(changes, told):
    with pytest.raises(ValidationError, match=told):
        config(vision=changes)


def test_the_engine_and_the_chat_refuse_models_of_images(tmp_path):
    reference(tmp_path / "theirs", "ViTForImageClassification", transformers.ViTConfig(**SIZES))
    model = load_pretrained(tmp_path / "theirs")
    save_pretrained(model, tmp_path / "ours")
    with pytest.raises(ConfigError, match="a vit model has vision alone and generates nothing"):
        LLM(model)
    result = CliRunner().invoke(cli, ["chat", str(tmp_path / "ours")])
    assert result.exit_code != 0
    assert "vision alone and generates nothing" in str(result.exception)
