"""Encoder-decoders as published files hold them: old keys, shared matrices, heads of their own, first tokens."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.families import family_named, family_of
from lmworks.models.hub import load_pretrained, read_config, save_pretrained
from lmworks.nn.attention_context import PackedContext
from lmworks.proofs.cases.encoder_decoders import BART, SWITCH, T5
from lmworks.proofs.families import LOGIT_BOUND

FAMILIES = ("bart", "m2m_100", "marian", "mbart", "mt5", "pegasus", "switch_transformers", "t5", "umt5", "xlnet")


def drawn(*lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(5, 97, (n,), generator=generator) for n in lengths]


SOURCES, TARGETS = drawn(11, 3, 1), drawn(4, 9, 2)


def reference(architecture, config, folder):
    cls = getattr(transformers, architecture)
    torch.manual_seed(0)
    model = cls(cls.config_class(**config)).eval()
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data = torch.randn_like(parameter) / parameter.shape[-1] ** 0.5 + (parameter.data == 1)
    model.tie_weights()
    model.save_pretrained(folder)
    return model


def packed(documents):
    bounds = torch.tensor([0, *(len(d) for d in documents)]).cumsum(0).to(torch.int32)
    return torch.cat(documents), torch.cat([torch.arange(len(d)) for d in documents]), bounds


def hidden(model, sources=SOURCES, targets=TARGETS):
    ids, positions, source = packed(sources)
    memory = model.encode(ids, positions, PackedContext(source))
    ids, positions, target = packed(targets)
    return model(ids, positions, PackedContext(target, memory_cu_seqlens=source), memory=memory), target


def logits(model, **documents):
    return model.logits(hidden(model, **documents)[0])


def gap(ours, theirs):
    expected = [
        theirs(input_ids=s[None], decoder_input_ids=t[None]).logits[0] for s, t in zip(SOURCES, TARGETS, strict=True)
    ]
    return (logits(ours) - torch.cat(expected)).abs().max().item()


def stored(folder, change):
    """Rewrite a folder's tensors with `change`, which gets them by name."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def configured(folder, **values):
    file = folder / "config.json"
    written = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({k: v for k, v in written.items() if v != "absent"}))


@pytest.mark.parametrize("name", FAMILIES)
def test_presets_survive_their_own_format(name):
    row = family_named(name)
    assert row.presets
    for config in row.presets.values():
        assert row.config_from_hf(row.to_hf(config)) == config


def test_a_document_is_translated_as_if_alone():
    config = family_of({"model_type": "t5"}).config_from_hf({**T5, "dropout_rate": 0.0})
    model = build_model(config, seed=0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    alone = [logits(model, sources=[s], targets=[t]) for s, t in zip(SOURCES, TARGETS, strict=True)]
    torch.testing.assert_close(logits(model), torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("spelling", "has_head"), [("version 4", True), ("version 5", True), ("version 5", False)])
def test_t5_1_1_keeps_its_own_head(tmp_path, spelling, has_head):
    gated = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    theirs = reference("T5ForConditionalGeneration", gated, tmp_path)
    if has_head:
        theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.flip(0).clone())
        theirs.save_pretrained(tmp_path)
    if spelling == "version 4":
        configured(tmp_path, tie_word_embeddings=False, scale_decoder_outputs="absent")
    ours = load_pretrained(tmp_path).eval()
    assert ours.tied is not has_head
    assert gap(ours, theirs) <= LOGIT_BOUND
    save_pretrained(ours, tmp_path / "again")
    assert load_pretrained(tmp_path / "again").config == ours.config
    assert gap(ours, transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "again").eval()) <= LOGIT_BOUND


def test_a_head_that_differs_although_logits_are_scaled_is_refused(tmp_path):
    reference("T5ForConditionalGeneration", T5, tmp_path)
    stored(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["shared.weight"].flip(0).clone()}))
    with pytest.raises(CheckpointError, match="ties the two"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("architecture", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_a_stack_with_an_embedding_of_its_own_is_refused(tmp_path, architecture):
    t5 = architecture.startswith("T5")
    reference(architecture, T5 if t5 else BART, tmp_path)
    owner = "shared.weight" if t5 else "model.shared.weight"
    other = owner.replace("shared", "decoder.embed_tokens")
    stored(tmp_path, lambda tensors: tensors.update({other: tensors[owner].clone()}))
    load_pretrained(tmp_path)
    stored(tmp_path, lambda tensors: tensors.update({other: tensors[owner].flip(0).clone()}))
    with pytest.raises(CheckpointError, match="one matrix for both"):
        load_pretrained(tmp_path)


def test_files_may_hold_the_embedding_under_the_stacks_names_alone(tmp_path):
    theirs = reference("MarianMTModel", {**BART, "decoder_start_token_id": 96}, tmp_path)

    def rename(tensors):
        shared = tensors.pop("model.shared.weight")
        tensors |= {f"model.{stack}.embed_tokens.weight": shared.clone() for stack in ("encoder", "decoder")}

    stored(tmp_path, rename)
    assert gap(load_pretrained(tmp_path).eval(), theirs) <= LOGIT_BOUND


def test_old_t5_files(tmp_path):
    theirs = reference("T5ForConditionalGeneration", T5, tmp_path)
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    stored(tmp_path, lambda tensors: tensors.update({unused: torch.zeros(10, 5)}))
    configured(
        tmp_path, architectures=["T5WithLMHeadModel"], output_past=True, n_positions=1000, num_decoder_layers=2,
        scale_decoder_outputs="absent", tie_word_embeddings="absent", relative_attention_max_distance=24,
        task_specific_params={"summarization": {"num_beams": 4}},
    )  # fmt: skip
    ours = load_pretrained(tmp_path).eval()
    assert ours.config.max_position_embeddings == 1000
    assert gap(ours, theirs) <= LOGIT_BOUND


def test_a_bare_bart_is_a_language_model_without_bias(tmp_path):
    theirs = reference("BartForConditionalGeneration", BART, tmp_path)
    theirs.model.save_pretrained(tmp_path / "bare")
    configured(tmp_path / "bare", architectures=["BartModel"], encoder_layerdrop=0.0, normalize_before=False)
    ours = load_pretrained(tmp_path / "bare").eval()
    assert gap(ours, theirs) <= LOGIT_BOUND


def test_the_bias_of_bart_is_kept_and_not_trained(tmp_path):
    theirs = reference("BartForConditionalGeneration", BART, tmp_path)
    theirs.final_logits_bias.data.normal_()
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path).eval()
    assert gap(ours, theirs) <= LOGIT_BOUND
    logits(ours).sum().backward()
    assert ours.lm_head.bias.grad is None


@pytest.mark.parametrize("name", ["Bart", "MBart"])
def test_classification(tmp_path, name):
    end = 2
    sources = [torch.cat([ids, torch.tensor([end])]) for ids in SOURCES]
    theirs = reference(f"{name}ForSequenceClassification", {**BART, "num_labels": 3}, tmp_path)
    ours = load_pretrained(tmp_path).eval()
    targets = [torch.cat([torch.tensor([end]), ids[:-1]]) for ids in sources]
    got = ours.document_logits(*hidden(ours, sources, targets))
    expected = [
        theirs(input_ids=s[None], decoder_input_ids=t[None]).logits[0] for s, t in zip(sources, targets, strict=True)
    ]
    assert (got - torch.stack(expected)).abs().max() <= LOGIT_BOUND
    save_pretrained(ours, tmp_path / "again")
    assert (
        load_file(tmp_path / "again" / "model.safetensors").keys() == load_file(tmp_path / "model.safetensors").keys()
    )


def test_the_decoders_first_token_may_stand_in_either_file(tmp_path):
    reference("MBartForConditionalGeneration", {**BART, "decoder_start_token_id": None}, tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert read_config(tmp_path).decoder_start_token_id is None
    configured(tmp_path, decoder_start_token_id=7)
    assert read_config(tmp_path).decoder_start_token_id == 7
    (tmp_path / "generation_config.json").write_text('{"decoder_start_token_id": 9}')
    assert read_config(tmp_path).decoder_start_token_id == 9
    save_pretrained(load_pretrained(tmp_path), tmp_path / "again")
    written = [json.loads((tmp_path / "again" / f"{name}config.json").read_text()) for name in ("", "generation_")]
    assert [w["decoder_start_token_id"] for w in written] == [9, 9]


@pytest.mark.parametrize(("layers", "count"), [(12, 6), (4, 4), (12, 3), (12, 0), (3, 5), (1, 0), (5, 2)])
def test_sparse_layers_of_switch_are_where_transformers_has_them(layers, count):
    changes = {"num_layers": layers, "num_sparse_encoder_layers": count}
    row = family_named("switch_transformers")
    config = row.config_from_hf({**SWITCH, **changes})
    theirs = transformers.SwitchTransformersConfig(**{**SWITCH, **changes})
    with torch.device("meta"):
        blocks = transformers.SwitchTransformersEncoderModel(theirs).encoder.block
    there = [block.is_sparse for block in blocks]
    assert [config.encoder.layer(i).mlp.kind == "moe" for i in range(layers)] == there
    assert row.config_from_hf(row.to_hf(config)) == config


def test_the_first_transformer_is_a_preset():
    config = family_named("marian").presets["transformer-base"]
    with torch.device("meta"):
        model = build_model(config)
    assert 62e6 < sum(p.numel() for p in model.parameters()) < 66e6  # the paper says 65
    assert [s.placement for s in config.stacks] == ["post", "post"]
    assert config.embed.multiplier == 512**0.5


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("t5", {"feed_forward_proj": "gated-tanhh"}, "gated-tanhh"),
        ("bart", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ("bart", {"encoder_attention_heads": 5}, "encoder_attention_heads"),
        ("switch_transformers", {"router_bias": True}, "router_bias"),
    ],
)
def test_what_is_not_there_is_named(family, changes, named):
    base = BART if family in ("bart", "marian") else SWITCH if family == "switch_transformers" else T5
    with pytest.raises(ConfigError, match=named):
        family_named(family).config_from_hf({**base, **changes})


def test_t5_cannot_gate_with_the_exact_gelu():
    config = family_named("t5").presets["t5-v1_1-small"].to_dict()
    for stack in ("encoder", "decoder"):
        config[stack]["mlp"]["hidden_act"] = "gelu"
    with pytest.raises(ConfigError, match="exact GELU"):
        family_named("t5").to_hf(ModelConfig.parse(config))


def test_dropout_acts_in_training_alone():
    config = family_named("bart").config_from_hf({**BART, "dropout": 0.5})
    model = build_model(config, seed=0)
    assert not torch.equal(logits(model), logits(model))
    model.eval()
    assert torch.equal(logits(model), logits(model))
