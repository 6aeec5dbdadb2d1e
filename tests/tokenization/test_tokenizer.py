import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import TokenizerError
from lmworks.tokenization import StreamingDetokenizer, check_compatible, load_tokenizer
from lmworks.tokenization.definition import TokenizerDefinition
from lmworks.tokenization.tokenizer import Tokenizer

TEXTS = [
    "",
    " ",
    "Hello, world! It's 2024; I'LL  go.\n\n\n  x",
    "你好，世界 👩‍👩‍👧 naïve\u0301 \u2028 \x00 ½Ⅷ",
    "def f(x):\n\treturn x**12  \r\n\r\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_transformers_and_round_trip(tokenizer, oracle, text):
    assert tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.text(), max_size=4))
def test_any_text_round_trips_and_batches_agree(tokenizer, texts):
    batch = tokenizer.encode_batch(texts)
    assert batch == [tokenizer.encode(t) for t in texts]
    assert [tokenizer.decode(ids) for ids in batch] == texts


def test_special_tokens_in_text_stay_text(tokenizer):
    ids = tokenizer.encode("a<|im_end|>b<|endoftext|>")
    assert not tokenizer.special_token_ids & set(ids)
    assert tokenizer.decode(ids) == "a<|im_end|>b<|endoftext|>"


def test_half_a_surrogate_pair_is_a_named_error(tokenizer):
    for call in (tokenizer.encode, lambda t: tokenizer.encode_batch([t])):
        with pytest.raises(TokenizerError, match="surrogate"):
            call("a\ud800b")


def test_decode_agrees_with_the_library_on_arbitrary_ids(tokenizer, oracle):
    ids = list(range(tokenizer.vocab_size))[::-1] * 2
    for skip in (True, False):
        assert tokenizer.decode(ids, skip) == oracle.decode(ids, skip_special_tokens=skip)
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == ""


@settings(max_examples=200)
@given(st.data())
def test_streaming_equals_decoding_at_once(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    skip = data.draw(st.booleans())
    stream = StreamingDetokenizer(tokenizer, skip)
    deltas = [stream.add(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    assert "".join([*deltas, stream.finish()]) == tokenizer.decode(ids, skip)


@given(st.text(min_size=1))
def test_streaming_never_emits_half_a_character(tokenizer, text):
    stream = StreamingDetokenizer(tokenizer)
    shown = ""
    for token_id in tokenizer.encode(text):
        shown += stream.add([token_id])
        assert text.startswith(shown)
    assert shown == text
    assert stream.finish() == ""


def test_saving_keeps_everything(tokenizer, tmp_path):
    changed = tokenizer.with_chat_template("{{ messages[0].content }}", ["<|im_end|>"])
    changed.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == changed.fingerprint != tokenizer.fingerprint
    assert loaded.eos_token_ids == (0, 2)
    assert loaded.chat_template == "{{ messages[0].content }}"
    assert loaded.encode(TEXTS[3]) == tokenizer.encode(TEXTS[3])


def test_a_template_inside_the_configuration_is_read(tokenizer_folder, tmp_path):
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for template in ("one", [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "one"}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
        assert load_tokenizer(tmp_path).chat_template == "one"


def test_the_model_lists_further_ends_of_generation(tokenizer_folder, tmp_path):
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    for value, expected in ((2, (0, 2)), ([2, 0], (0, 2)), (None, (0,))):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        assert load_tokenizer(tmp_path).eos_token_ids == expected
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(TokenizerError, match="eos_token_id = 'x'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b'{"version": "1.0", "mod', "tokenizer.json is damaged"),
        ("tokenizer.json", b"\xff\xfe\x00", "cannot read"),
        ("tokenizer.json", b"[]", "not an object"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "Nope"}}', "tokenizer.json is damaged"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json is damaged"),
        ("tokenizer_config.json", b'{"eos_token": "<nope>"}', "eos_token '<nope>' is not in the vocabulary"),
        ("tokenizer.json", None, "holds no tokenizer.json"),
    ],
)
def test_damaged_folders_are_named(tokenizer_folder, tmp_path, name, content, message):
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_does_not_fit_the_weights_is_refused(tokenizer):
    check_compatible(tokenizer, tokenizer.vocab_size)
    check_compatible(tokenizer, tokenizer.vocab_size + 112)
    with pytest.raises(TokenizerError, match="only 399 embedding rows"):
        check_compatible(tokenizer, 399)
    with pytest.raises(TokenizerError, match="of 49152 embedding rows unused"):
        check_compatible(tokenizer, 49152)


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
}


@pytest.mark.parametrize(
    ("config", "processor", "expected"),
    [
        ({"add_bos_token": True}, None, True),
        ({"add_bos_token": False}, TEMPLATE, False),
        ({}, TEMPLATE, True),
        ({}, {"type": "Sequence", "processors": [{"type": "ByteLevel"}, TEMPLATE]}, True),
        ({}, {"type": "ByteLevel"}, False),
        ({}, None, False),
        ({"bos_token": None}, None, False),
    ],
)
def test_adds_bos_follows_the_config_then_the_post_processor(tokenizer, config, processor, expected):
    definition = tokenizer.definition
    roles = {k: v for k, v in definition.config.items() if k != "add_bos_token"}
    changed = TokenizerDefinition({**definition.spec, "post_processor": processor}, {**roles, **config}, None)
    assert Tokenizer(changed).adds_bos is expected


def test_transformers_begins_a_prompt_as_training_does(tokenizer, oracle):
    assert oracle.encode("Paris") == [tokenizer.bos_token_id, *tokenizer.encode("Paris")]
    assert tokenizer.adds_bos
