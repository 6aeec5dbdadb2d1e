import json

import pytest

from lmworks.core.errors import TokenizerError
from lmworks.tokenization import load_tokenizer
from lmworks.tokenization.gguf import from_metadata
from lmworks.tokenization.pretokenizers import pre_tokenizer
from lmworks.tokenization.tokenizer import Tokenizer

TEXTS = ["The dog's 中英文 text 👩‍👩‍👧 café  x\n\n\ty", "I'LL add 12 + 3456 =\r\n\r\n x", " 床前明月光，疑是地上霜。"]


def metadata(tokenizer, **changes):
    model = tokenizer.definition.spec["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3 if i < 3 else 1 for i in range(len(tokens))],
        "merges": [" ".join(pair) for pair in model["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | changes
    return {f"tokenizer.ggml.{k}": v for k, v in values.items() if v is not None}


def write_gguf(path, values):
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_ids_equal_transformers_reading_the_same_file(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    write_gguf(tmp_path / "t.gguf", metadata(tokenizer))
    ours, oracle = load_tokenizer(tmp_path / "t.gguf"), AutoTokenizer.from_pretrained(tmp_path, gguf_file="t.gguf")
    for text in TEXTS:
        assert ours.encode(text) == oracle.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert (ours.bos_token_id, ours.eos_token_ids) == (1, (2,))
    assert len(ours.special_tokens) == 3
    assert load_tokenizer(tmp_path).fingerprint == ours.fingerprint  # a folder that holds nothing else stands for it


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2", "default"])
def test_a_folder_written_from_gguf_reads_the_same(tokenizer, tmp_path, pre):
    from transformers import AutoTokenizer

    first = Tokenizer(from_metadata(metadata(tokenizer, pre=pre), "m"))
    first.save(tmp_path)
    again, oracle = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == first.fingerprint
    for text in TEXTS:
        assert again.encode(text) == first.encode(text) == oracle.encode(text)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "ab  12\n\n3", ["ab", "  ", "1", "2", "\n\n", "3"]),
        ("gpt-2", "ab  12\n\n3", ["ab", " ", " 12", "\n", "\n", "3"]),
        ("llama-bpe", "ab  1234\n\n3", ["ab", " ", " ", "123", "4", "\n\n", "3"]),
        ("qwen2", "(ab) 12", ["(ab", ")", " ", "1", "2"]),
    ],
)
def test_pre_tokenizers_cut_where_they_should(pre, text, pieces):
    import tokenizers

    spec = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str()) | {"pre_tokenizer": pre_tokenizer(pre)}
    cut = tokenizers.Tokenizer.from_str(json.dumps(spec)).pre_tokenizer.pre_tokenize_str(text)
    assert [text[a:b] for _, (a, b) in cut] == pieces


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "rwkv"}, "tokenizer.ggml.model = 'rwkv' is not supported"),
        ({"model": None}, "tokenizer.ggml.model = None"),
        ({"pre": "martian"}, "unknown pre-tokenizer 'martian'"),
        ({"tokens": None}, "has no tokenizer.ggml.tokens"),
        ({"merges": None}, "has no tokenizer.ggml.merges"),
        ({"token_type": [1]}, "1 token types for 400 tokens"),
        ({"eos_token_id": 4000}, "eos_token id 4000 is outside"),
        ({"merges": ["no such"]}, "damaged"),
    ],
)
def test_metadata_that_makes_no_tokenizer_is_named(tokenizer, changes, message):
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(from_metadata(metadata(tokenizer, **changes), "m.gguf"))
