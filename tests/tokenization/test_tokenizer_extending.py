"""A larger vocabulary: old ids and old texts stay, new tokens stand where their pieces stood, the model agrees."""

import pytest
import torch
from click.testing import CliRunner
from tiny_tokenizers import KINDS, save

from lmworks.cli.main import cli
from lmworks.core.errors import TokenizerError
from lmworks.tokenization import load_tokenizer
from lmworks.tokenization.extending import add_merges, add_tokens

NEW = ["photosynthesis", " mitochondria", "量子力学", "<|tool|>"]
OLD_TEXTS = [
    "The quick brown fox jumps.",
    "床前明月光，疑是地上霜。",
    "def add(a, b):\n    return a + b\n",
    "x  <0x0A> 1",
]
DOMAIN = ["photosynthesis of the chlorophyll, photosynthesis again: chlorophyll", "量子力学 and 量子力学"] * 4
BPE = ("gpt2", "llama3", "deepseek", "llama", "mistral", "gemma")


def spelled(tokenizer, extension, ids):
    """Ids with every new one written as its old pieces."""
    return [old for i in ids for old in extension.pieces.get(i, (i,))]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    for kind in KINDS:
        save(kind, folder / kind)
    return {kind: load_tokenizer(folder / kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_leave_old_texts_alone(tokenizers, tmp_path, kind):
    old = tokenizers[kind]
    extension = add_tokens(old, NEW)
    extension.tokenizer.save(tmp_path)
    new = load_tokenizer(tmp_path)
    assert list(extension.pieces) == list(range(old.vocab_size, old.vocab_size + len(NEW)))
    assert all(new.token_id(token) == i for token, i in zip(NEW, extension.pieces, strict=True))
    assert all(extension.pieces.values())
    for text in OLD_TEXTS:
        assert new.encode(text) == old.encode(text)
    assert new.token_id("photosynthesis") in new.encode("of photosynthesis.")
    for token in old.special_tokens:
        assert new.token_id(token.content) == old.token_id(token.content)


@pytest.mark.parametrize("kind", BPE)
def test_further_merges_shorten_new_texts_alone(tokenizers, tmp_path, kind):
    old = tokenizers[kind]
    extension = add_merges(old, DOMAIN, 30)
    extension.tokenizer.save(tmp_path)
    new = load_tokenizer(tmp_path)
    assert 10 < len(extension.pieces) <= 30
    for text in [*OLD_TEXTS, *DOMAIN]:
        ids = new.encode(text)
        assert spelled(old, extension, ids) == old.encode(text)
        assert new.decode(ids) == old.decode(old.encode(text))
    assert len(new.encode(DOMAIN[0])) < 0.7 * len(old.encode(DOMAIN[0]))
    for i in extension.pieces:
        assert new.token_bytes(i) == b"".join(old.token_bytes(p) for p in extension.pieces[i])
        assert b" " not in new.token_bytes(i)[1:].strip()


def test_further_merges_are_read_alike_by_transformers(tokenizers, tmp_path):
    from transformers import AutoTokenizer

    extension = add_merges(tokenizers["llama3"], DOMAIN, 30)
    extension.tokenizer.save(tmp_path)
    oracle = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*OLD_TEXTS, *DOMAIN]:
        assert extension.tokenizer.encode(text) == oracle(text, add_special_tokens=False)["input_ids"]


def test_special_tokens_are_no_text(tokenizers):
    new = add_tokens(tokenizers["gpt2"], ["<|tool|>"], special=True).tokenizer
    assert new.token_id("<|tool|>") in new.special_token_ids
    assert new.encode("<|tool|>") == tokenizers["gpt2"].encode("<|tool|>")


def test_known_tokens_are_not_added_again(tokenizers):
    assert not add_tokens(tokenizers["gpt2"], ["the", "the"]).pieces.keys() - {tokenizers["gpt2"].vocab_size}
    again = add_tokens(add_tokens(tokenizers["gpt2"], NEW).tokenizer, NEW)
    assert not again.pieces


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_other_vocabularies_learn_no_merges(tokenizers, kind):
    with pytest.raises(TokenizerError, match="no further merges"):
        add_merges(tokenizers[kind], DOMAIN, 5)


def test_an_empty_token_is_refused(tokenizers):
    with pytest.raises(TokenizerError, match="empty"):
        add_tokens(tokenizers["gpt2"], [""])


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_a_grown_model_that_says_of_old_tokens_what_it_did(tokenizers, tmp_path, tied):
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    old = tokenizers["llama3"]
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    before = LlamaForCausalLM(LlamaConfig(vocab_size=old.vocab_size, tie_word_embeddings=tied, **shape)).eval()
    before.save_pretrained(tmp_path / "old")
    old.save(tmp_path / "old")
    command = ["tokenizer", "extend", str(tmp_path / "old"), str(tmp_path / "new"), "--token", "量子力学"]
    CliRunner().invoke(cli, [*command, "--token", "photosynthesis", "--token", "the"], catch_exceptions=False)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    new = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert after.config.tie_word_embeddings == tied
    ids = torch.tensor([new.encode("The fox said the words.")])
    assert ids.tolist()[0][1:] == old.encode("The fox said the words.")
    with torch.no_grad():
        then, now = before(ids).logits, after(ids).logits
    assert torch.equal(now[..., : old.vocab_size], then)
    pieces = add_tokens(old, ["量子力学", "photosynthesis"]).pieces
    assert now.shape[-1] == old.vocab_size + len(pieces)
    for token, parts in pieces.items():
        assert (now[..., token] <= then[..., list(parts)].max(-1).values + 1e-5).all(), "never likelier than its parts"
    text = "学习量子力学 of photosynthesis"
    assert new.encode(text)[1:] == load_tokenizer(tmp_path / "new").encode(text)
    assert set(pieces) <= set(new.encode(text))
