"""Single tokens to bytes against whole sequences in the `tokenizers` library; what cannot be cut up is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models

from lmworks.core.errors import TokenizerError
from lmworks.tokenization.decoding import token_decoder
from lmworks.tokenization.definition import TokenizerDefinition
from lmworks.tokenization.spaces import clean_up, settled
from lmworks.tokenization.tokenizer import Tokenizer as Ours

PIECES = ["▁", "▁a", "b", "##c", "##", " ", "▁▁d▁", ".", "'", "s", "n't", "do not", "Ġx", "é", "你", "<0x41>", "x.", ""]
DECODERS = {
    "none": None,
    "metaspace": decoders.Metaspace(),
    "metaspace without a prefix": decoders.Metaspace(prepend_scheme="never"),
    "word pieces": decoders.WordPiece(),
    "word pieces as they are": decoders.WordPiece(prefix="▁", cleanup=False),
    "byte level": decoders.ByteLevel(),
    "byte level in a sequence": decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]),
    "strip of the text": decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)]),
    "fallback": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]),
}


def definition(decoder) -> dict:
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(PIECES)}, unk_token="b"))
    if decoder is not None:
        backend.decoder = decoder
    return json.loads(backend.to_str())


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, len(PIECES) - 1), max_size=8))
def test_tokens_one_by_one_give_what_the_library_gives(name, ids):
    spec = definition(DECODERS[name])
    expected = Tokenizer.from_str(json.dumps(spec)).decode(ids, skip_special_tokens=False)
    assert Ours(TokenizerDefinition(spec)).decode(ids, skip_special_tokens=False) == expected


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (decoders.BPEDecoder(), "'BPEDecoder' decoder cannot be turned into text one by one"),
        (decoders.CTC(), "'CTC' decoder"),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")]), "'Replace' decoder"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), "'Strip' decoder"),
        (decoders.Strip(" ", 1, 0), "'Strip' decoder"),
        (decoders.Replace(Regex("a+"), "b"), "not plain text"),
    ],
)
def test_a_decoder_that_needs_more_than_a_token_is_refused(decoder, message):
    tokenizer = Ours(TokenizerDefinition(definition(decoder)))
    assert tokenizer.encode("b") == [2]  # reading works
    with pytest.raises(TokenizerError, match=message):
        tokenizer.decode([2])


def test_old_spellings_mean_what_they_mean_to_the_library():
    old = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "str_rep": "▁"}
    decoder = token_decoder(old)
    assert (decoder.decode("▁a", first=True), decoder.decode("▁a", first=False)) == (b"a", b" a")


@settings(max_examples=400)
@given(text=st.text(alphabet=" .?!,'nmsvertd", max_size=24), data=st.data())
def test_settled_text_can_be_cleaned_up_by_itself(text, data):
    shown, held = "", ""
    for character in text:
        held += character
        if data.draw(st.booleans()):
            end = settled(held)
            shown, held = shown + clean_up(held[:end]), held[end:]
    assert shown + clean_up(held) == clean_up(text)


def test_settling_keeps_up_with_ordinary_text():
    for text in ("This is a text of short and longer words", "a b c d e f g", "你好世界"):
        assert len(text) - settled(text) <= 6
