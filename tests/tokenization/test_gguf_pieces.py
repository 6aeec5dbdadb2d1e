"""SentencePiece's and BERT's vocabularies in GGUF metadata: ids and text as their own libraries give them."""

import json

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tiny_tokenizers import LINES

from lmworks.core.errors import TokenizerError
from lmworks.tokenization.gguf import from_metadata
from lmworks.tokenization.tokenizer import Tokenizer

LLAMA = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "vocab_size": 380,
         "remove_extra_whitespaces": False, "split_digits": True}  # fmt: skip
T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 180, "hard_vocab_limit": False}
GEMMA = LLAMA | {"add_dummy_prefix": False, "user_defined_symbols": ["▁▁", "▁▁▁▁", "<b>"]}
KINDS = {"llama": ("llama", LLAMA, {}), "t5": ("t5", T5, {}), "gemma": ("llama", GEMMA, {"add_space_prefix": False})}


def trained(folder, options):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=str(folder / "made"), minloglevel=2, character_coverage=1.0,
        num_threads=1, **options,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "made.model"))


def metadata(oracle, kind, **changes):
    """What llama.cpp's converter writes of a SentencePiece model."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(oracle.serialized_model_proto())
    ids = {"bos": oracle.bos_id(), "eos": oracle.eos_id(), "unknown": oracle.unk_id(), "padding": oracle.pad_id()}
    values = {
        "model": kind, "tokens": [p.piece for p in proto.pieces], "scores": [p.score for p in proto.pieces],
        "token_type": [p.type for p in proto.pieces],
        "precompiled_charsmap": list(proto.normalizer_spec.precompiled_charsmap) or None,
        **{f"{role}_token_id": i for role, i in ids.items() if i >= 0},
    } | changes  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    kind, options, changes = KINDS[request.param]
    oracle = trained(tmp_path_factory.mktemp(request.param), options)
    return Tokenizer(from_metadata(metadata(oracle, kind, **changes), "m")), oracle


@pytest.mark.parametrize(
    "text", ["", " ", "  a  b ", "The fox.", "½ ﬁ ① Å", "你好 🦊", "a\tb\n\nc", "x <b>y", *LINES[:5]]
)
def test_ids_and_text_equal_sentencepiece(pair, text):
    tokenizer, oracle = pair
    assert tokenizer.encode(text) == oracle.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == oracle.decode(oracle.encode(text)).replace(" \u2047 ", "")


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_characters="\0▁", exclude_categories=["Cs"])))
def test_any_text_equals_sentencepiece(pair, text):
    tokenizer, oracle = pair
    assert tokenizer.encode(text) == oracle.encode(text)


def test_begin_and_end_marks_follow_the_file(tmp_path):
    oracle = trained(tmp_path, LLAMA)
    assert Tokenizer(from_metadata(metadata(oracle, "llama"), "m")).adds_bos
    assert not Tokenizer(from_metadata(metadata(oracle, "llama", add_bos_token=False), "m")).adds_bos
    spec = from_metadata(metadata(oracle, "llama", add_eos_token=True), "m").spec
    framed = tokenizers.Tokenizer.from_str(json.dumps(spec)).encode("The fox.").ids
    assert framed == [oracle.bos_id(), *oracle.encode("The fox."), oracle.eos_id()]


def test_a_folder_written_from_it_reads_the_same(pair, tmp_path):
    from lmworks.tokenization import load_tokenizer

    tokenizer, _ = pair
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    for text in LINES[:4]:
        assert again.encode(text) == tokenizer.encode(text)
    assert again.adds_bos == tokenizer.adds_bos


def test_word_pieces_equal_transformers():
    from transformers import BertTokenizerFast

    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefox.,",
        *(f"##{c}" for c in "abcdefoxhs"),
        "the",
        "fo",
    ]
    oracle = BertTokenizerFast(vocab={text: i for i, text in enumerate(pieces)})
    stored = [p if p.startswith("[") else p[2:] if p.startswith("##") else f"▁{p}" for p in pieces]
    roles = {"cls": 2, "seperator": 3, "unknown": 1, "padding": 0, "mask": 4}
    values = {"model": "bert", "tokens": stored, "token_type": [3] * 5 + [1] * (len(pieces) - 5)}
    values |= {f"{role}_token_id": i for role, i in roles.items()}
    ours = Tokenizer(from_metadata({f"tokenizer.ggml.{k}": v for k, v in values.items()}, "m"))
    frame = tokenizers.Tokenizer.from_str(json.dumps(ours.definition.spec))
    for text in ("The fox, a Boxé.", "foxes dead", "猫 fed"):
        assert frame.encode(text).ids == oracle(text)["input_ids"]
        assert ours.encode(text) == oracle(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": [0.0]}, "1 scores for 380 tokens"),
        ({"scores": None}, "0 scores for 380 tokens"),
        ({"model": "rwkv"}, "'rwkv' is not supported .known: 'gpt2', 'llama', 't5', 'bert'"),
        ({"eos_token_id": 999}, "eos_token id 999 is outside the vocabulary of 380"),
    ],
)
def test_what_is_missing_is_named(tmp_path, changes, message):
    with pytest.raises(TokenizerError, match=message):
        from_metadata(metadata(trained(tmp_path, LLAMA), "llama", **changes), "m")


def test_a_token_listed_twice_and_whole_spaces_after_a_prefix_are_refused(tmp_path):
    values = metadata(trained(tmp_path, LLAMA), "llama")
    values["tokenizer.ggml.tokens"][-1] = values["tokenizer.ggml.tokens"][-2]
    with pytest.raises(TokenizerError, match="is listed twice"):
        from_metadata(values, "m")
    spaces = metadata(trained(tmp_path, GEMMA | {"add_dummy_prefix": True}), "llama")
    with pytest.raises(TokenizerError, match="pieces with spaces as whole tokens"):
        from_metadata(spaces, "m")
