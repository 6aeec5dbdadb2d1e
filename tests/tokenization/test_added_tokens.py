"""Added tokens of every flag, against `transformers`: ids of texts around them, and the text that they decode to."""

import itertools

import pytest
from tiny_tokenizers import KINDS
from tokenizers import AddedToken

from lmworks.tokenization import load_tokenizer

CONTENTS = ["NEW", "ﬁX", "  1", "你好", "a1"]
TEXTS = ["a NEW b", "aNEW bNEW\n", "x  ﬁX  y ﬁX", "é   1   1", "你好，你好 a1a1", "new   a1 \u00a0NEW NEWs", "A1 fix"]


@pytest.mark.parametrize("kind", KINDS)
def test_flags_mean_what_they_do_in_transformers(kind, tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    flags = [
        dict(zip(("lstrip", "rstrip", "single_word", "normalized"), on, strict=True))
        for on in itertools.product((False, True), repeat=4)
    ]
    for start in range(0, len(flags), 2):
        backend, roles = KINDS[kind]()
        reference = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
        reference.add_tokens([AddedToken(c, **flags[(start + n) % 16]) for n, c in enumerate(CONTENTS)])
        reference.save_pretrained(tmp_path)
        ours, oracle = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
        for text in TEXTS:
            ids = ours.encode(text)
            assert ids == oracle.encode(text, add_special_tokens=False)
            assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


def test_a_special_token_that_merges_lead_through_is_loaded(tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    backend, roles = KINDS["llama3"]()
    reference = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    reference.add_tokens([AddedToken("a", special=True), AddedToken("the", special=True)], special_tokens=True)
    reference.save_pretrained(tmp_path)
    ours, oracle = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a banana", "the other"):
        assert ours.encode(text) == oracle.encode(text, add_special_tokens=False, split_special_tokens=True)
