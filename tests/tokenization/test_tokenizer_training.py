import json

import pytest

from lmworks.core.errors import ConfigError, DataError
from lmworks.core.lineage import verify
from lmworks.tokenization import load_tokenizer
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer


def test_the_same_corpus_gives_the_same_bytes(corpus, tokenizer_folder, tmp_path):
    again = train_tokenizer(
        TokenizerConfig(corpus=corpus, output=tmp_path / "t", vocab_size=400, reference=tokenizer_folder)
    )
    assert again.files == verify(tokenizer_folder).files
    assert again.kind == "tokenizer"
    assert {p.role for p in again.parents} == {"corpus", "reference"}
    assert again.metrics["bytes_per_token"] == again.metrics["reference_bytes_per_token"] > 1.5
    assert again.metrics["vocab_size"] == 400


def test_special_tokens_have_their_places(tokenizer):
    assert [tokenizer.token_id(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (0, (0,))


@pytest.mark.parametrize(("max_digits", "longest"), [(1, 1), (3, 3)])
def test_digits_are_cut_as_configured(tmp_path, max_digits, longest):
    rows = [json.dumps({"text": f"{i} 1234567"}) for i in range(300)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    train_tokenizer(TokenizerConfig(corpus=tmp_path, output=tmp_path / "t", vocab_size=2000, max_digits=max_digits))
    tokenizer = load_tokenizer(tmp_path / "t")
    assert max(len(tokenizer.token_bytes(i)) for i in tokenizer.encode("1234567")) == longest
    assert tokenizer.vocab_size < 2000  # the corpus has no more pairs
    tokens = {tokenizer.token_bytes(i) for i in range(3, 259)}
    assert tokens == {bytes([b]) for b in range(256)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no train.jsonl"),
        ("", "holds no text"),
        ('{"text": ""}\n', "holds no text"),
        ('{"text": "a"}\nnot json\n', "line 2"),
        ('{"id": 1}\n', "line 1"),
        ('{"text": 3}\n', "line 1"),
        ('{"text": "\\ud800"}\n', "line 1"),
    ],
)
def test_a_corpus_without_text_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        train_tokenizer(TokenizerConfig(corpus=tmp_path, output=tmp_path / "t"))
    assert not (tmp_path / "t").exists()


def test_a_vocabulary_without_room_for_bytes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="vocab_size = 258"):
        TokenizerConfig.parse({"corpus": tmp_path, "output": tmp_path / "t", "vocab_size": 258})
