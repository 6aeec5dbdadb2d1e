"""Vectors and scores through `LLM` are those of sentence-transformers and transformers, for models of any head."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_engine import BOS, byte_tokenizer, tiny_model

from lmworks.core.errors import ConfigError, RequestError, TokenizerError
from lmworks.core.generation import Embedder as EmbedderProtocol
from lmworks.core.sampling import SamplingParams
from lmworks.engine import LLM
from lmworks.models.build import build_model
from lmworks.models.head_slots import RewardHead
from lmworks.models.hub import load_pretrained
from lmworks.tokenization import load_tokenizer

WORDS = [
    "cat",
    "dog",
    "rain",
    "on",
    "the",
    "mat",
    "sat",
    "fell",
    "runs",
    "slowly",
    "and",
    "was",
    "seen",
    "by",
    "nobody",
]
TEXTS = [" ".join(WORDS[i : i + 4]) for i in range(6)]
TOKENIZER = byte_tokenizer()


def bert(folder, kind, **options):
    """A tiny BERT of transformers with weights that matter, saved with its tokenizer."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate(vocabulary)}).save_pretrained(folder)
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32,
        max_position_embeddings=16, **options,
    ))  # fmt: skip
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model.eval()


def judged(model, folder, first, second):
    """Sigmoid of what transformers says of each pair."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(first, second, padding=True, truncation="longest_first", max_length=16, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits[:, 0].sigmoid().tolist()


def test_a_cross_encoder_scores_pairs_as_in_transformers(tmp_path):
    theirs = bert(tmp_path, "BertForSequenceClassification", num_labels=1)
    ours = LLM(tmp_path, dtype="float32")
    long = " ".join(WORDS)
    assert ours.score(TEXTS[0], [*TEXTS, long]) == pytest.approx(
        judged(theirs, tmp_path, [TEXTS[0]] * 7, [*TEXTS, long]), abs=1e-5
    )
    assert ours.score(TEXTS, TEXTS[::-1]) == pytest.approx(judged(theirs, tmp_path, TEXTS, TEXTS[::-1]), abs=1e-5)
    in_memory = LLM(load_pretrained(tmp_path), load_tokenizer(tmp_path))
    assert in_memory.score(TEXTS[0], TEXTS) == pytest.approx(ours.score(TEXTS[0], TEXTS))


def test_a_classifier_with_several_labels_gives_no_score(tmp_path):
    bert(tmp_path, "BertForSequenceClassification", num_labels=3)
    with pytest.raises(ConfigError, match="3 labels gives no score"):
        LLM(tmp_path).score("cat", "dog")


@pytest.mark.filterwarnings("ignore")
def test_vectors_and_cosines_are_those_of_sentence_transformers(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    bert(tmp_path / "plain", "BertModel")
    transformer = Transformer(str(tmp_path / "plain"))
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="cls")
    theirs = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    theirs.save(str(tmp_path / "st"))
    ours = LLM(tmp_path / "st")
    assert isinstance(ours, EmbedderProtocol)
    expected = torch.nn.functional.normalize(torch.tensor(theirs.encode(TEXTS)), dim=-1)
    torch.testing.assert_close(torch.tensor(ours.embed(TEXTS)), expected, rtol=1e-5, atol=1e-5)
    assert ours.score(TEXTS[0], TEXTS) == pytest.approx((expected @ expected[0]).tolist(), abs=1e-5)
    assert ours.score(TEXTS[:2], TEXTS[2:4]) == pytest.approx((expected[:2] * expected[2:4]).sum(-1).tolist(), abs=1e-5)
    with pytest.raises(RequestError, match="2 texts cannot be paired with 3"):
        ours.score(TEXTS[:2], TEXTS[:3])
    assert ours.score("cat", []) == []
    with pytest.raises(ConfigError, match="generates nothing"):
        ours.generate("cat", SamplingParams())


def test_a_model_that_generates_embeds_too_and_stays_in_training():
    model = tiny_model().train()
    served = LLM(model, TOKENIZER)
    (vector,) = served.embed("hi")
    from lmworks.nn.attention_context import PackedContext

    tokens = torch.tensor([BOS, *TOKENIZER.encode("hi")])
    with torch.no_grad():
        hidden = model.eval()(tokens, torch.arange(3), PackedContext(torch.tensor([0, 3], dtype=torch.int32)))
    expected = torch.nn.functional.normalize(hidden.mean(0), dim=-1)
    assert vector == pytest.approx(expected.tolist(), abs=1e-5)
    model.train()
    served.embed(["a", "b"])
    assert model.training
    assert served.generate("hi", SamplingParams(max_tokens=2, seed=0))[0].outputs


def test_a_reward_model_scores_a_question_and_an_answer():
    model = build_model(tiny_model().config.model_copy(update={"head": RewardHead()}), seed=0)
    good, bad = LLM(model, TOKENIZER).score("question", ["answer", "else"])
    assert good != bad
    assert 0 < min(good, bad) < max(good, bad) < 1


def test_a_model_without_a_tokenizer_reads_no_texts(tmp_path):
    with pytest.raises(RequestError, match="no tokenizer"):
        LLM(tiny_model()).embed("hi")
    bert(tmp_path, "BertModel")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError):
        LLM(tmp_path)
