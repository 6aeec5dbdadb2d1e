"""A tokenizer written into GGUF metadata encodes the same when it is read back, here and by transformers."""

import dataclasses
import json

import pytest
import tokenizers

from lmworks.core.errors import TokenizerError
from lmworks.core.gguf_writer import write_gguf
from lmworks.core.messages import Message
from lmworks.tokenization import load_tokenizer
from lmworks.tokenization.definition import TokenizerDefinition
from lmworks.tokenization.gguf_export import gguf_metadata
from lmworks.tokenization.pretokenizers import by_pattern, gpt4_pattern, pre_tokenizer
from lmworks.tokenization.tokenizer import Tokenizer

TEXTS = ["The dog's 中英文 text 👩‍👩‍👧 café  x\n\n\ty", "I'LL add 12 + 3456 =\r\n\r\n x", " 床前明月光，疑是地上霜。"]


def changed(tokenizer, *, config=None, template=None, **spec):
    definition = tokenizer.definition
    return Tokenizer(
        TokenizerDefinition(
            {**definition.spec, **spec}, {**definition.config, **(config or {})}, template or definition.chat_template,
            definition.eos_token_ids,
        )
    )  # fmt: skip


def written(tokenizer, folder):
    write_gguf(folder / "t.gguf", {"general.architecture": "llama", **gguf_metadata(tokenizer)}, [])
    return folder / "t.gguf"


def test_a_trained_tokenizer_comes_back(tokenizer, tmp_path):
    again = load_tokenizer(written(tokenizer, tmp_path))
    for text in [*TEXTS, "".join(map(chr, range(32, 1000)))]:
        assert again.encode(text) == tokenizer.encode(text)
    assert again.vocab_size == tokenizer.vocab_size
    assert again.special_tokens == tokenizer.special_tokens
    assert (again.bos_token_id, again.eos_token_ids) == (tokenizer.bos_token_id, tokenizer.eos_token_ids)
    assert again.adds_bos is tokenizer.adds_bos
    assert again.chat_template == tokenizer.chat_template
    messages = [Message(role="user", content="12 dogs?"), Message(role="assistant", content="Yes.")]
    assert again.encode_chat(messages) == tokenizer.encode_chat(messages)


@pytest.mark.parametrize(
    ("pre", "changes"),
    [
        ("gpt-2", {}),
        ("smollm", {}),
        ("llama-bpe", {"ignore_merges": True}),
        ("smaug-bpe", {}),
        ("qwen2", {}),
        ("stablelm2", {}),
    ],
)
def test_every_cut_has_its_name(tokenizer, tmp_path, pre, changes):
    model = {**tokenizer.definition.spec["model"], **changes}
    normalizer = {"type": "NFC"} if pre == "qwen2" else None
    variant = changed(tokenizer, pre_tokenizer=pre_tokenizer(pre), normalizer=normalizer, model=model)
    assert gguf_metadata(variant)["tokenizer.ggml.pre"] == pre
    again = load_tokenizer(written(variant, tmp_path))
    for text in TEXTS:
        assert again.encode(text) == variant.encode(text)


def test_transformers_reads_the_same(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    variant = changed(tokenizer, pre_tokenizer=pre_tokenizer("gpt-2"))
    oracle = AutoTokenizer.from_pretrained(tmp_path, gguf_file=written(variant, tmp_path).name)
    for text in TEXTS:
        assert oracle.encode(text, add_special_tokens=False) == variant.encode(text)
    assert oracle.chat_template == variant.chat_template
    assert (oracle.bos_token, oracle.eos_token) == ("<|endoftext|>", "<|endoftext|>")


def test_the_form_that_the_library_writes_itself(tokenizer):
    backend = tokenizers.Tokenizer.from_str(json.dumps(dict(tokenizer.definition.spec)))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(gpt4_pattern(1)), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    spec = json.loads(backend.to_str())
    assert gguf_metadata(changed(tokenizer, **spec))["tokenizer.ggml.pre"] == "stablelm2"


def test_old_merges_gaps_and_added_tokens(tokenizer, tmp_path):
    spec = tokenizer.definition.spec
    merges = [" ".join(pair) for pair in spec["model"]["merges"]]
    size = tokenizer.vocab_size
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)
    vocab = {**spec["model"]["vocab"], "<tool>": size + 2}
    variant = changed(
        tokenizer,
        model={**spec["model"], "merges": merges, "vocab": vocab},
        added_tokens=[*spec["added_tokens"], {"content": "<tool>", "id": size + 2, **flags}],
    )
    metadata = gguf_metadata(variant)
    assert metadata["tokenizer.ggml.tokens"][size:] == [f"[PAD{size}]", f"[PAD{size + 1}]", "<tool>"]
    assert metadata["tokenizer.ggml.token_type"][size:] == [5, 5, 4]
    again = load_tokenizer(written(variant, tmp_path))
    for text in [*TEXTS, "use <tool> now"]:
        assert again.encode(text) == variant.encode(text)


def test_a_token_for_every_embedding_row(tokenizer):
    size = tokenizer.vocab_size
    metadata = gguf_metadata(tokenizer, size + 2)
    assert metadata["tokenizer.ggml.tokens"][size:] == [f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert metadata["tokenizer.ggml.token_type"][size:] == [5, 5]
    with pytest.raises(TokenizerError, match=f"the weights only {size - 1} embedding rows"):
        gguf_metadata(tokenizer, size - 1)


def test_ends_of_turn_and_message(tokenizer, tmp_path):
    ends = tuple(tokenizer.token_id(t.content) for t in tokenizer.special_tokens[:3])
    variant = Tokenizer(dataclasses.replace(tokenizer.definition, eos_token_ids=ends))
    assert variant.eos_token_ids == ends
    assert load_tokenizer(written(variant, tmp_path)).eos_token_ids == ends


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": by_pattern(r"\w+")}, "no name for the way this tokenizer cuts"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer .*Lowercase"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "type 'WordLevel' is not written"),
    ],
)
def test_what_gguf_cannot_say_is_refused(tokenizer, changes, message):
    added = {"added_tokens": []} if "model" in changes else {}
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token")) if "model" in changes else {}
    with pytest.raises(TokenizerError, match=message):
        gguf_metadata(changed(tokenizer, config=roles, **changes, **added))
