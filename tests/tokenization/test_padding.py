"""Framed, cut and padded batches, against `transformers`: every side, length, window and pair."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import KINDS, save

from lmworks.core.errors import TokenizerError
from lmworks.tokenization import encode_padded, load_tokenizer
from lmworks.tokenization.definition import TokenizerDefinition
from lmworks.tokenization.tokenizer import Tokenizer

SIDES = st.sampled_from(["left", "right"])
TEXT = st.text(alphabet="the fox 狐狸\n.é😀", max_size=40)


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """A tokenizer and the same of transformers, both with a padding token."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp(request.param)
    save(request.param, folder)
    oracle = AutoTokenizer.from_pretrained(folder)
    oracle.pad_token = oracle.pad_token or oracle.eos_token
    oracle.save_pretrained(folder)
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_batches_equal_those_of_transformers(kind, data):
    tokenizer, oracle = kind
    texts = data.draw(st.lists(TEXT, min_size=1, max_size=4))
    pairs = data.draw(st.none() | st.lists(TEXT, min_size=len(texts), max_size=len(texts)))
    max_length = data.draw(st.none() | st.integers(10, 30))
    paddings = [None, "longest"] if max_length is None else [None, "longest", "max_length"]
    chosen = {
        "add_special_tokens": data.draw(st.booleans()),
        "max_length": max_length,
        "stride": 0 if max_length is None else data.draw(st.integers(0, 2)),
        "padding_side": data.draw(SIDES),
    }
    padding, cut = data.draw(st.sampled_from(paddings)), data.draw(SIDES)
    allowed = [n for n in (1, 4, 7) if padding is None or max_length is None or max_length % n == 0]
    multiple, overflow = data.draw(st.sampled_from(allowed)), data.draw(st.booleans())
    oracle.truncation_side = cut
    expected = oracle(
        texts, pairs, padding=padding or False, truncation=max_length is not None, return_overflowing_tokens=overflow,
        pad_to_multiple_of=multiple if padding else None, return_offsets_mapping=True, return_token_type_ids=True,
        return_special_tokens_mask=True, split_special_tokens=True, **chosen,
    )  # fmt: skip
    found = encode_padded(
        tokenizer, texts, pairs, truncation_side=cut, overflow=overflow, padding=padding,
        pad_to_multiple_of=multiple, **chosen,
    )  # fmt: skip
    for name in ("input_ids", "attention_mask", "special_tokens_mask"):
        assert getattr(found, name) == expected[name], name
    roberta = tokenizer.definition.spec["post_processor"]["type"] == "RobertaProcessing"
    if chosen["add_special_tokens"] or not roberta:  # whose second texts are never told apart there
        assert found.token_type_ids == expected["token_type_ids"]
    assert found.offsets == [list(map(tuple, row)) for row in expected["offset_mapping"]]
    assert found.samples == expected.get("overflow_to_sample_mapping", list(range(len(texts))))


@pytest.mark.parametrize("truncation", ["only_first", "only_second"])
def test_one_text_of_a_pair_gives_way(kind, truncation):
    tokenizer, oracle = kind
    texts, pairs = ["the fox said the words of the fox"], ["What is the capital of France?"]
    longest = max(len(tokenizer.encode(text)) for text in (*texts, *pairs))
    oracle.truncation_side = "right"
    expected = oracle(texts, pairs, truncation=truncation, max_length=longest + 5, split_special_tokens=True)
    found = encode_padded(tokenizer, texts, pairs, truncation=truncation, max_length=longest + 5)
    assert found.input_ids == expected["input_ids"]
    assert encode_padded(tokenizer, texts, [""], truncation=truncation, max_length=longest + 5, stride=2).samples == [0]
    with pytest.raises(TokenizerError, match="of text 0 and its pair"):
        encode_padded(tokenizer, texts, pairs, truncation=truncation, max_length=6)


def test_special_tokens_in_texts_stay_text(kind):
    tokenizer, _ = kind
    mark = tokenizer.special_tokens[-1].content
    (row,) = encode_padded(tokenizer, [mark], add_special_tokens=False).input_ids
    assert row == tokenizer.encode(mark)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"padding": "max_length"}, "needs one"),
        ({"max_length": 6, "pad_to_multiple_of": 4}, "no multiple of 4"),
        ({"pairs": ["a"]}, "cannot be paired"),
        ({"truncation": "only_second"}, "no second text"),
        ({"max_length": 0}, "beside the frame"),
        ({"max_length": 5, "stride": 5}, "stride of 5"),
    ],
)
def test_mistakes_are_named(tokenizer, settings, message):
    with pytest.raises(TokenizerError, match=message):
        encode_padded(tokenizer, ["a", "b"], **settings)


def test_without_a_padding_token_only_equal_rows_are_padded(tokenizer):
    config = {name: value for name, value in tokenizer.definition.config.items() if name != "pad_token"}
    bare = Tokenizer(TokenizerDefinition(tokenizer.definition.spec, config))
    assert encode_padded(bare, ["a", "b"]).attention_mask == [[1, 1], [1, 1]]
    assert encode_padded(bare, []).input_ids == []
    with pytest.raises(TokenizerError, match="no pad_token"):
        encode_padded(bare, ["a", "b c d e"])
    assert len(encode_padded(bare, ["a", "b c d e"], padding=None).input_ids[0]) == 2


def test_a_beginning_that_only_the_configuration_names_is_put_there(tokenizer):
    spec = {**tokenizer.definition.spec, "post_processor": None}
    bare = Tokenizer(TokenizerDefinition(spec, tokenizer.definition.config))
    assert encode_padded(bare, ["fox"]).input_ids == encode_padded(tokenizer, ["fox"]).input_ids
