"""Heads: pooling over packed documents, judgments of tokens, documents and pairs, what each head refuses."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaForTokenClassification

from lmworks.core.errors import ConfigError
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig
from lmworks.models.families import family_named
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.nn.attention_context import PackedContext
from lmworks.nn.pooling import pool

BOUNDS = torch.tensor([0, 5, 6, 13], dtype=torch.int32)
TOKENS = torch.randint(5, 50, (13,), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.cat([torch.arange(5), torch.arange(1), torch.arange(7)])
SLICES = [slice(0, 5), slice(5, 6), slice(6, 13)]


def encoder(head, *, family="bert", **changes):
    attention = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 4, "qkv_bias": True, "o_bias": True}
    norm = {"kind": "layer", "eps": 1e-12}
    config = {
        "family": family, "vocab_size": 51, "hidden_size": 12, "max_position_embeddings": 20, "head": head,
        "embed": {"type_vocab_size": 2, "norm": norm}, "positions": {"kind": "learned"}, "pad_token_id": 0,
        "initialization": "normal",
        "encoder": {
            "num_hidden_layers": 2, "attention": attention, "causal": False, "norm": norm, "placement": "post",
            "mlp": {"intermediate_size": 16, "hidden_act": "gelu", "gated": False, "bias": True}, "final_norm": False,
        },
    }  # fmt: skip
    return build_model(ModelConfig.parse(config | changes), seed=0)


def hidden_of(model):
    return model(TOKENS, POSITIONS, PackedContext(BOUNDS))


@pytest.mark.parametrize(
    ("pooling", "formula"),
    [("cls", lambda x: x[0]), ("last", lambda x: x[-1]), ("mean", lambda x: x.sum(0) / len(x))],
)
def test_pooling_is_its_formula_and_has_its_gradient(pooling, formula):
    x = torch.randn(13, 4, dtype=torch.float64, requires_grad=True)
    wanted = torch.stack([formula(x[s]) for s in SLICES])
    got = pool(x, BOUNDS, pooling)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    weights = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (got, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


def test_pooling_keeps_the_type():
    assert pool(torch.randn(13, 4, dtype=torch.bfloat16), BOUNDS, "mean").dtype == torch.bfloat16


HEADS = [
    ({"kind": "sequence_classification", "num_labels": 3, "pooling": "cls", "dense_act": "tanh"}, (3, 3)),
    ({"kind": "sequence_classification", "num_labels": 4, "pooling": "mean", "dense_act": "gelu", "dense_norm": True},
     (3, 4)),
    ({"kind": "reward"}, (3, 1)),
    ({"kind": "next_sentence"}, (3, 2)),
    ({"kind": "masked_lm", "next_sentence": True}, (3, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("head", "shape"), HEADS)
def test_documents_are_judged_alone_as_packed(head, shape):
    model = encoder(head)
    packed = model.document_logits(hidden_of(model), BOUNDS)
    assert packed.shape == shape
    for i, s in enumerate(SLICES):
        bounds = torch.tensor([0, s.stop - s.start], dtype=torch.int32)
        alone = model.document_logits(model(TOKENS[s], POSITIONS[s], PackedContext(bounds)), bounds)
        torch.testing.assert_close(packed[i], alone[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "width"),
    [({"kind": "token_classification", "num_labels": 5}, 5), ({"kind": "question_answering"}, 2)],
)
def test_tokens_are_judged_one_by_one(head, width):
    model = encoder(head)
    hidden = hidden_of(model)
    assert model.token_logits(hidden).shape == (13, width)
    torch.testing.assert_close(model.token_logits(hidden)[3], model.token_logits(hidden[3:4])[0])


def test_embeddings_are_normalized_where_asked():
    model = encoder({"kind": "embedding", "pooling": "mean", "normalize": True})
    vectors = model.embed_documents(hidden_of(model), BOUNDS)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize("method", ["document_logits", "token_logits", "embed_documents"])
def test_a_language_model_says_what_it_cannot_do(method):
    model = encoder({"kind": "masked_lm"})
    hidden = hidden_of(model)
    with pytest.raises(ConfigError, match="masked_lm"):
        getattr(model, method)(hidden, *([] if method == "token_logits" else [BOUNDS]))


def test_too_few_names_of_labels_are_refused():
    with pytest.raises(ConfigError, match="2 names of labels are given for num_labels 3"):
        encoder({"kind": "token_classification", "num_labels": 3, "labels": ["a", "b"]})


def test_shared_layers_need_a_stack_that_is_not_causal():
    config = encoder({"kind": "masked_lm"}).config.to_dict()
    config["encoder"]["num_hidden_groups"] = 1
    assert len(build_model(ModelConfig.parse(config)).encoder.layers) == 1
    config["encoder"]["causal"] = True
    with pytest.raises(ConfigError, match="must not be causal"):
        ModelConfig.parse(config)


def test_shared_layers_are_one_layer_applied_again(tmp_path):
    config = encoder({"kind": "masked_lm"}).config.to_dict()
    shared, apart = dict(config["encoder"]), config["encoder"]
    model = build_model(ModelConfig.parse(config | {"encoder": shared | {"num_hidden_groups": 1}}), seed=1)
    twice = build_model(ModelConfig.parse(config | {"encoder": apart}), seed=2)
    state = model.state_dict()
    copied = {n: state[n.replace("layers.1.", "layers.0.")] for n in twice.state_dict()}
    twice.load_state_dict(copied)
    torch.testing.assert_close(hidden_of(model), hidden_of(twice))


@pytest.mark.parametrize(
    ("cls", "labels"), [(LlamaForSequenceClassification, 3), (LlamaForSequenceClassification, 1),
                        (LlamaForTokenClassification, 4)],
)  # fmt: skip
def test_heads_of_decoders_are_transformers(cls, labels, tmp_path):
    sizes = {"vocab_size": 51, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=3, num_key_value_heads=1, num_labels=labels, pad_token_id=0)
    theirs = cls(config).eval()
    theirs.save_pretrained(tmp_path / "a")
    model = load_pretrained(tmp_path / "a")
    hidden = hidden_of(model)
    save_pretrained(model, tmp_path / "b")
    again = cls.from_pretrained(tmp_path / "b").eval()
    for reference in (theirs, again):
        alone = [reference(input_ids=TOKENS[s][None]).logits[0] for s in SLICES]
        if cls is LlamaForTokenClassification:
            torch.testing.assert_close(model.token_logits(hidden), torch.cat(alone), rtol=1e-5, atol=1e-5)
        else:
            assert model.config.head.kind == ("reward" if labels == 1 else "sequence_classification")
            torch.testing.assert_close(model.document_logits(hidden, BOUNDS), torch.stack(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_the_way_to_vectors_survives_config_json(pooling):
    head = {"kind": "embedding", "pooling": pooling, "normalize": True, "pooler": True}
    config = encoder(head).config
    hf = family_named("bert").to_hf(config)
    assert hf["architectures"] == ["BertModel"]
    assert family_named("bert").config_from_hf(hf) == config


def test_a_family_without_such_a_head_says_so():
    with pytest.raises(ConfigError, match="no class with the head"):
        family_named("roberta").to_hf(encoder({"kind": "next_sentence"}, family="roberta").config)
