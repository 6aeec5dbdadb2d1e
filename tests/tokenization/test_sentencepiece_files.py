"""SentencePiece's own files, converted: ids and text as `sentencepiece` itself gives them."""

import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import LINES

from lmworks.core.errors import TokenizerError
from lmworks.core.messages import Message
from lmworks.tokenization import StreamingDetokenizer, load_tokenizer

LLAMA = {
    "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False, "split_digits": True, "vocab_size": 380,
}  # fmt: skip
T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 180, "hard_vocab_limit": False}
XLM_R = {"vocab_size": 180, "hard_vocab_limit": False}
KINDS = {"llama": ("tokenizer.model", LLAMA), "t5": ("spiece.model", T5), "xlm-roberta": ("tokenizer.model", XLM_R)}


def write(folder: Path, family: str, options: dict, file: str = "tokenizer.model", **config: object) -> Path:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=str(folder / "made"), minloglevel=2, character_coverage=1.0,
        num_threads=1, **options,
    )  # fmt: skip
    (folder / "made.model").rename(folder / file)
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    file, options = KINDS[request.param]
    folder = write(tmp_path_factory.mktemp(request.param), request.param, options, file)
    shift = 1 if request.param == "xlm-roberta" else 0  # fairseq has four tokens before the pieces, the file three
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(folder / file))
    return load_tokenizer(folder), oracle, shift


def same(pair, text: str) -> None:
    tokenizer, oracle, shift = pair
    expected = [tokenizer.token_id("<unk>") if i == oracle.unk_id() else i + shift for i in oracle.encode(text)]
    ids = tokenizer.encode(text)
    assert ids == expected
    assert tokenizer.decode(ids) == oracle.decode(oracle.encode(text)).replace(" \u2047 ", "")
    stream = StreamingDetokenizer(tokenizer)
    assert "".join([*(stream.add([i]) for i in ids), stream.finish()]) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    "text", ["", " ", "  a  b ", "The fox.", "½ ﬁ ① Å", "你好 🦊", "a\tb\n\nc", "▁a", "</s> <pad>", *LINES[:5]]
)
def test_ids_and_text_equal_sentencepiece(pair, text):
    same(pair, text)


@settings(max_examples=80, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_equals_sentencepiece(pair, text):
    same(pair, text)


@pytest.mark.parametrize("family", KINDS)
def test_ids_are_arranged_and_texts_framed_as_in_transformers(tmp_path, family):
    from transformers import AutoTokenizer

    file, options = KINDS[family]
    file = "sentencepiece.bpe.model" if family == "xlm-roberta" else file
    folder = write(tmp_path, family, options, file, add_bos_token=family == "llama")
    ours, oracle = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    frame = tokenizers.Tokenizer.from_str(json.dumps(ours.definition.spec))
    for text in ("The fox said.", "words, words"):
        if family == "llama":  # whose merges the library finds otherwise than `sentencepiece`
            assert frame.encode(text).ids == [oracle.encode(text)[0], *ours.encode(text)]
        else:
            assert frame.encode(text).ids == oracle.encode(text)
        assert ours.decode(oracle.encode(text)) == text
    for role in ("bos", "eos", "unk", "pad", "mask"):
        if (token := getattr(oracle, f"{role}_token")) is not None:
            assert ours.token_id(token) == oracle.convert_tokens_to_ids(token)
            assert ours.token_id(token) in ours.special_token_ids
    assert ours.token_id("<extra_id_0>") == (oracle.get_vocab().get("<extra_id_0>"))
    ours.save(tmp_path / "new")
    reread = AutoTokenizer.from_pretrained(tmp_path / "new")
    for text in LINES[:5]:
        assert reread.encode(text) == frame.encode(text).ids
        assert load_tokenizer(tmp_path / "new").encode(text) == ours.encode(text)


def test_only_the_whole_text_begins_with_a_mark_where_the_configuration_says_so(tmp_path):
    def chat(**config):
        folder = tmp_path / str(len(config))
        folder.mkdir()
        tokenizer = load_tokenizer(write(folder, "llama", LLAMA, **config))
        asked = tokenizer.with_chat_template("{{ bos_token }}the{{ eos_token }}fox")
        return [tokenizer.decode([i], False) for i in asked.encode_chat([Message(role="user", content="x")]).token_ids]

    new, old = chat(legacy=False), chat()
    assert (new[0], new[-1]) == (old[0], old[-1])
    assert len(old) > len(new) or old != new


@pytest.mark.parametrize("legacy", [False, True])
def test_a_model_without_a_mark_at_the_beginning_puts_none(tmp_path, legacy):
    folder = write(tmp_path, "llama", {**LLAMA, "add_dummy_prefix": False}, legacy=legacy)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = load_tokenizer(folder)
    for text in ("the fox", " the  fox", "fox"):
        assert tokenizer.encode(text) == oracle.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == oracle.decode(oracle.encode(text))


def test_what_the_file_leaves_open_is_not_guessed(tmp_path):
    with pytest.raises(TokenizerError, match="how 'albert' models arrange their ids is not known") as caught:
        load_tokenizer(write(tmp_path, "albert", XLM_R))
    assert "save_pretrained" in caught.value.remedy
    write(tmp_path, "llama", {**LLAMA, "user_defined_symbols": ["▁▁"]})
    with pytest.raises(TokenizerError, match=r"defines \['▁▁'\] as whole tokens"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    write(tmp_path, "t5", {**T5, "user_defined_symbols": ["<sep>"]}, "spiece.model")
    with pytest.raises(TokenizerError, match=r"defines \['<sep>'\] as whole tokens"):
        load_tokenizer(tmp_path)
    (tmp_path / "spiece.model").unlink()
    write(tmp_path, "llama", {**LLAMA, "treat_whitespace_as_suffix": True})
    with pytest.raises(TokenizerError, match="end with a space"):
        load_tokenizer(tmp_path)
    write(tmp_path, "llama", {"model_type": "char", "hard_vocab_limit": False})
    with pytest.raises(TokenizerError, match="model type 4 is not converted"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * 40, lambda b: b"{}", lambda b: b"\x0a\x05" + b[:9]],
)
def test_damaged_files_are_named(tmp_path, damage):
    file = write(tmp_path, "llama", LLAMA) / "tokenizer.model"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(TokenizerError, match=r"tokenizer\.model is not a SentencePiece model"):
        load_tokenizer(tmp_path)


def test_pieces_that_stand_for_themselves_stay_whole(tmp_path):
    folder = write(tmp_path, "llama", {**LLAMA, "user_defined_symbols": ["[INST]"]})
    tokenizer = load_tokenizer(folder)
    token = tokenizer.token_id("[INST]")
    assert token in tokenizer.encode("a [INST] b")
    assert token not in tokenizer.special_token_ids
