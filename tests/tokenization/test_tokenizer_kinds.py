"""Every kind of tokenizer that families ship, against `transformers`: ids, text, streams, chats, folders."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import KINDS, LINES, save

from lmworks.core.messages import Message
from lmworks.tokenization import StreamingDetokenizer, load_tokenizer

TEXTS = [
    "",
    " ",
    "The fox.",
    "  two  spaces ",
    "a\nb\n\n c\t",
    "it 's n't here ! ok , yes . 's ' m",
    "你好 🦊 naïve\u0301",
    *LINES[:5],
]


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp(request.param)
    save(request.param, folder)
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


def reference_ids(oracle, text):
    return oracle.encode(text, add_special_tokens=False, split_special_tokens=True)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_equal_transformers(kind, text):
    tokenizer, oracle = kind
    ids = tokenizer.encode(text)
    assert ids == reference_ids(oracle, text)
    assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


CLASSES = {
    "LlamaTokenizer": "llama", "GemmaTokenizer": "gemma", "T5Tokenizer": "t5", "XLMRobertaTokenizer": "xlm_r",
    "MBartTokenizer": "xlm_r", "XLNetTokenizer": "xlm_r", "PegasusTokenizer": "t5", "BertTokenizer": "bert",
    "MPNetTokenizer": "bert", "RobertaTokenizer": "bart", "Qwen2Tokenizer": "gpt2", "GPTNeoXTokenizer": "gpt2",
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_folders_that_a_family_class_saves_are_read_alike(tmp_path, name):
    import transformers

    model = json.loads(KINDS[CLASSES[name]]()[0].to_str())["model"]
    vocab = [tuple(v) for v in model["vocab"]] if isinstance(model["vocab"], list) else model["vocab"]
    merges = {"merges": [tuple(m) for m in model["merges"]]} if "merges" in model else {}
    getattr(transformers, name)(vocab=vocab, **merges).save_pretrained(tmp_path)
    ours, oracle = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == reference_ids(oracle, text)
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
    assert ours.adds_bos == (oracle.bos_token_id is not None and oracle.encode("a")[0] == oracle.bos_token_id)


@settings(max_examples=60, deadline=None)
@given(text=st.text())
def test_any_text_equals_transformers(kind, text):
    tokenizer, oracle = kind
    ids = tokenizer.encode(text)
    assert ids == reference_ids(oracle, text)
    assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_ids_decode_as_in_transformers_and_stream_alike(kind, data):
    tokenizer, oracle = kind
    broken = data.draw(st.booleans())
    all_ids = [i for t, i in oracle.get_vocab().items() if broken or not t.startswith("<0x")]
    ids = data.draw(st.lists(st.sampled_from(sorted(all_ids)), max_size=30))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    skip = data.draw(st.booleans())
    text = tokenizer.decode(ids, skip)
    reference = oracle.decode(ids, skip_special_tokens=skip)
    if not broken or tokenizer.token_id("<0x00>") is None:  # a broken run of byte tokens is lost as a whole there
        assert text == reference
    stream = StreamingDetokenizer(tokenizer, skip)
    deltas = [
        stream.add([*ids[a:b], tokenizer.vocab_size + 7]) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)
    ]
    assert "".join([*deltas, stream.finish()]) == text


@settings(max_examples=40, deadline=None)
@given(text=st.text(alphabet="ab .?!,'nmsver t do", max_size=40))
def test_spaces_before_punctuation_go_as_in_transformers(kind, text):
    tokenizer, oracle = kind
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
    stream = StreamingDetokenizer(tokenizer)
    assert "".join([*(stream.add([i]) for i in ids), stream.finish()]) == tokenizer.decode(ids)


def test_special_tokens_in_a_text_are_text(kind):
    tokenizer, oracle = kind
    specials = [t for t in oracle.all_special_tokens if t != oracle.unk_token]
    for text in ("".join(specials), "a " + " b ".join(specials) + " c", *specials):
        assert not (set(tokenizer.encode(text)) & tokenizer.special_token_ids) - {oracle.unk_token_id}


def test_special_tokens_are_shown_on_request(kind):
    tokenizer, oracle = kind
    ids = [*tokenizer.special_token_ids, *tokenizer.encode("the fox"), *tokenizer.special_token_ids]
    for skip in (True, False):
        assert tokenizer.decode(ids, skip) == oracle.decode(ids, skip_special_tokens=skip)


def test_a_text_begins_as_in_training(kind):
    tokenizer, oracle = kind
    if oracle.bos_token_id is not None:
        assert tokenizer.adds_bos == (oracle.encode("the fox")[0] == oracle.bos_token_id)


def test_a_stream_that_goes_on_keeps_its_first_space(kind):
    tokenizer, _ = kind
    whole = tokenizer.encode("the fox said the words")
    for cut in range(1, len(whole)):
        stream = StreamingDetokenizer(tokenizer, continues=True)
        assert tokenizer.decode(whole[:cut]) + stream.add(whole[cut:]) + stream.finish() == tokenizer.decode(whole)


def test_chats_become_the_ids_of_transformers(kind):
    tokenizer, oracle = kind
    marks = sorted(t for t in oracle.all_special_tokens if not t.endswith("mask>"))
    first, last = marks[0], marks[-1]
    template = (
        "{{ bos_token or '' }}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        f"{first}{{{{ ' ' + m.content.strip() }}}}{last}{{{{ m.content }}}}\n{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{first}the end{{% endif %}}"
    )
    messages = [("system", "Be brief."), ("user", "  What is the capital? "), ("assistant", "The fox"), ("user", "it")]
    plain = [{"role": role, "content": content} for role, content in messages]
    asked = [Message(role=role, content=content) for role, content in messages]
    expected = oracle.apply_chat_template(plain, chat_template=template, add_generation_prompt=True, return_dict=False)
    assert tokenizer.with_chat_template(template).encode_chat(asked, True).token_ids == expected


def test_saved_folders_are_read_alike_by_transformers(kind, tmp_path):
    from transformers import AutoTokenizer

    tokenizer, oracle = kind
    tokenizer.with_chat_template("{{ bos_token }}{{ messages[0].content }}").save(tmp_path)
    reread, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert reread.special_tokens_map == oracle.special_tokens_map
    assert reread.chat_template == ours.chat_template
    for text in TEXTS:
        ids = oracle.encode(text)
        assert reread.encode(text) == ids
        assert reread.decode(ids) == oracle.decode(ids) == ours.decode(ids, skip_special_tokens=False)
        assert ours.encode(text) == tokenizer.encode(text)
