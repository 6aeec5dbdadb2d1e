"""Encoders as published files hold them: old names, leftovers of training, defaults; packing and segments."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lmworks.core.errors import CheckpointError, ConfigError
from lmworks.models.build import build_model
from lmworks.models.families import family_named, family_of
from lmworks.models.hub import load_pretrained, read_config, save_pretrained
from lmworks.nn.attention_context import PackedContext

SIZES = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
    "max_position_embeddings": 32,
}  # fmt: skip
ENCODERS = ("albert", "bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
LENGTHS = (9, 1, 14)
IDS = [torch.randint(5, 61, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]


def reference(architecture, **changes):
    cls = getattr(transformers, architecture)
    torch.manual_seed(0)
    model = cls(cls.config_class(**SIZES, **changes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def packed(model, documents=IDS, types=None):
    bounds = torch.tensor([0, *(len(d) for d in documents)]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(len(d)) for d in documents])
    types = None if types is None else torch.cat(types)
    return model(torch.cat(documents), positions, PackedContext(bounds), token_type_ids=types), bounds


def stored(folder, change):
    """Rewrite a folder's tensors with `change`, which gets them by name."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def configured(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_padded_batch_of_transformers_is_a_packed_one_here(tmp_path):
    theirs = reference("BertForMaskedLM")
    theirs.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    ids = torch.nn.utils.rnn.pad_sequence(IDS, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(d) for d in IDS], batch_first=True)
    types = [torch.arange(n) * 2 // n for n in LENGTHS]
    segments = torch.nn.utils.rnn.pad_sequence(types, batch_first=True)
    with torch.no_grad():
        wanted = theirs(input_ids=ids, attention_mask=mask, token_type_ids=segments).logits[mask.bool()]
        torch.testing.assert_close(model.logits(packed(model, types=types)[0]), wanted, rtol=1e-5, atol=1e-5)


def test_segments_change_what_a_pair_is_judged(tmp_path):
    theirs = reference("BertForPreTraining")
    theirs.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    types = [torch.arange(n) * 2 // n for n in LENGTHS]
    with torch.no_grad():
        judged = [model.document_logits(*packed(model, types=t)) for t in (types, None)]
        for i, (ids, segment) in enumerate(zip(IDS, types, strict=True)):
            wanted = theirs(input_ids=ids[None], token_type_ids=segment[None]).seq_relationship_logits[0]
            torch.testing.assert_close(judged[0][i], wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(judged[0], judged[1], atol=1e-3)


def test_bert_base_as_it_was_published(tmp_path):
    """Norms called gamma and beta, position buffers, one bias, heads of the pretraining beside masked LM."""
    theirs = reference("BertForPreTraining")
    theirs.save_pretrained(tmp_path)

    def age(tensors):
        for name in [n for n in tensors if "LayerNorm" in n]:
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = torch.arange(32)[None]
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()

    stored(tmp_path, age)
    configured(tmp_path, architectures=["BertForMaskedLM"], position_embedding_type="absolute")
    model = load_pretrained(tmp_path)
    assert model.config.head.kind == "masked_lm"
    with torch.no_grad():
        wanted = torch.cat([theirs(input_ids=d[None]).prediction_logits[0] for d in IDS])
        torch.testing.assert_close(model.logits(packed(model)[0]), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kept", ["cls.predictions.bias", "cls.predictions.decoder.bias"])
def test_the_bias_of_the_vocabulary_under_either_name(tmp_path, kept):
    reference("BertForMaskedLM").save_pretrained(tmp_path)
    bias = torch.randn(61)

    def rename(tensors):
        tensors.pop("cls.predictions.bias")
        tensors[kept] = bias

    stored(tmp_path, rename)
    torch.testing.assert_close(load_pretrained(tmp_path).lm_head.bias.data, bias)


def test_two_biases_that_differ_are_refused(tmp_path):
    reference("BertForMaskedLM").save_pretrained(tmp_path)
    stored(tmp_path, lambda tensors: tensors.update({"cls.predictions.decoder.bias": torch.ones(61)}))
    with pytest.raises(CheckpointError, match=r"cls.predictions.decoder.bias that differs"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("architecture", ["BertModel", "RobertaModel", "AlbertModel", "MPNetModel"])
def test_a_bare_model_with_and_without_its_pooler(tmp_path, architecture):
    theirs = reference(architecture)
    theirs.save_pretrained(tmp_path / "a")
    with_pooler = load_pretrained(tmp_path / "a")
    assert with_pooler.config.head.pooler
    stored(tmp_path / "a", lambda t: [t.pop(n) for n in list(t) if n.startswith("pooler.")])
    model = load_pretrained(tmp_path / "a")
    assert not model.config.head.pooler
    save_pretrained(model, tmp_path / "b")
    assert set(load_file(tmp_path / "b" / "model.safetensors")) == set(load_file(tmp_path / "a" / "model.safetensors"))
    assert read_config(tmp_path / "b") == model.config
    with torch.no_grad():
        torch.testing.assert_close(packed(model)[0], packed(with_pooler)[0])


def test_the_pooler_reaches_transformers(tmp_path):
    theirs = reference("BertModel")
    theirs.save_pretrained(tmp_path / "a")
    save_pretrained(load_pretrained(tmp_path / "a"), tmp_path / "b")
    again = transformers.BertModel.from_pretrained(tmp_path / "b").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(IDS[0][None]).pooler_output, theirs(IDS[0][None]).pooler_output)


def test_a_missing_tensor_is_named_in_the_files_words(tmp_path):
    reference("BertForSequenceClassification").save_pretrained(tmp_path)
    stored(tmp_path, lambda tensors: tensors.pop("bert.pooler.dense.weight"))
    with pytest.raises(CheckpointError, match=r"missing: bert\.pooler\.dense\.weight"):
        load_pretrained(tmp_path)


def test_names_of_labels_survive(tmp_path):
    theirs = reference("BertForSequenceClassification", id2label={0: "no", 1: "yes", 2: "so so"})
    theirs.save_pretrained(tmp_path / "a")
    model = load_pretrained(tmp_path / "a")
    assert model.config.head.labels == ("no", "yes", "so so")
    save_pretrained(model, tmp_path / "b")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "b")
    assert config.id2label == {0: "no", 1: "yes", 2: "so so"}
    assert config.label2id == {"no": 0, "yes": 1, "so so": 2}


@pytest.mark.parametrize("id2label", [{"1": "one"}, {"a": "one"}, ["one"]])
def test_labels_without_numbers_are_refused(id2label):
    hf = {"model_type": "bert", **SIZES, "architectures": ["BertForSequenceClassification"], "id2label": id2label}
    with pytest.raises(ConfigError, match="does not number its labels"):
        family_of(hf).config_from_hf(hf)


def test_roberta_counts_positions_after_the_padding(tmp_path):
    hf = {"model_type": "roberta", **SIZES}
    config = family_of(hf).config_from_hf(hf)
    assert (config.max_position_embeddings, config.positions.offset) == (30, 2)
    assert build_model(config).encoder.embed_positions.weight.shape == (32, 24)
    with pytest.raises(ConfigError, match="leaves no position"):
        family_of(hf).config_from_hf({**hf, "max_position_embeddings": 2})


@pytest.mark.parametrize(
    ("model_type", "values", "said"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"num_attention_heads": 5}, "not a multiple of the 5 heads"),
        ("bert", {"architectures": ["BertForMultipleChoice"]}, "BertForMultipleChoice"),
        ("albert", {"inner_group_num": 2}, "inner_group_num"),
        ("albert", {"num_hidden_groups": 3, "num_hidden_layers": 4}, "num_hidden_groups 3 must divide"),
        ("mpnet", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets"),
    ],
)
def test_what_is_not_supported_is_refused(model_type, values, said):
    hf = {"model_type": model_type, **SIZES, **values}
    with pytest.raises(ConfigError, match=said):
        family_of(hf).config_from_hf(hf)


def test_modernbert_before_layer_types_were_listed():
    hf = {
        "model_type": "modernbert", **SIZES, "num_hidden_layers": 7, "global_attn_every_n_layers": 3,
        "local_attention": 8, "global_rope_theta": 5000.0, "local_rope_theta": 70.0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    config = family_of(hf).config_from_hf(hf)
    theirs = transformers.ModernBertConfig(**{k: v for k, v in hf.items() if k != "model_type"})
    windows = [config.encoder.layer(i).attention.sliding_window for i in range(7)]
    assert windows == [None if t == "full_attention" else 5 for t in theirs.layer_types]
    assert config.encoder.layers["L"].positions.rope_theta == theirs.rope_parameters["sliding_attention"]["rope_theta"]
    assert config.positions.rope_theta == theirs.rope_parameters["full_attention"]["rope_theta"]
    assert family_of(hf).config_from_hf(family_of(hf).to_hf(config)) == config


@pytest.mark.parametrize("family", ENCODERS)
def test_presets_have_as_many_parameters_as_in_transformers(family):
    for preset in family_named(family).presets.values():
        hf = family_named(family).to_hf(preset)
        with torch.device("meta"):
            ours = build_model(preset)
            config = transformers.AutoConfig.for_model(**hf)
            theirs = getattr(transformers, hf["architectures"][0])(config)
        assert sum(p.numel() for p in ours.parameters()) == theirs.num_parameters()
