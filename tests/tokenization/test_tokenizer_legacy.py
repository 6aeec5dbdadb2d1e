"""Folders without `tokenizer.json`: ids and text as in `transformers` and, for its own files, in `sentencepiece`."""

import json
from pathlib import Path

import pytest
from tiny_tokenizers import KINDS, LINES

from lmworks.core.errors import TokenizerError
from lmworks.tokenization import load_tokenizer

TEXTS = [
    "",
    "The fox said.",
    "  two  spaces ",
    "a\nb\t",
    "it 's n't here ! ok",
    "你好 🦊 naïve\u0301",
    "½ ﬁ Ⅷ",
    *LINES[:5],
]


def write(folder: Path, kind: str, **files: object) -> Path:
    """The vocabulary of a kind as old files, with further JSON files by name."""
    model = json.loads(KINDS[kind]()[0].to_str())["model"]
    if "merges" in model:
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in model["merges"]))
    else:
        (folder / "vocab.txt").write_text("".join(t + "\n" for t in sorted(model["vocab"], key=model["vocab"].get)))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def compare(folder: Path):
    from transformers import AutoTokenizer

    ours, oracle = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == oracle.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
    assert {*oracle.all_special_ids} <= ours.special_token_ids
    assert (ours.bos_token_id, ours.eos_token_ids[:1]) == (
        oracle.bos_token_id,
        () if oracle.eos_token_id is None else (oracle.eos_token_id,),
    )
    return ours


@pytest.mark.parametrize(
    ("kind", "family", "config"),
    [
        ("gpt2", "gpt2", {}),
        ("gpt2", "gpt2", {"add_prefix_space": True}),
        ("gpt2", "qwen2", {"tokenizer_class": "Qwen2Tokenizer"}),
        ("bart", "roberta", {}),
        ("bart", "bart", {"tokenizer_class": "BartTokenizer"}),
        ("bert", "bert", {}),
        ("bert", "distilbert", {"do_lower_case": False}),
        ("bert", "electra", {"strip_accents": False, "tokenize_chinese_chars": False}),
    ],
)
def test_old_vocabularies_are_read_as_in_transformers(tmp_path, kind, family, config):
    files = {"tokenizer_config": config} if config else {}
    ours = compare(write(tmp_path, kind, config={"model_type": family}, **files))
    ours.save(tmp_path / "new")
    assert load_tokenizer(tmp_path / "new").encode(TEXTS[-1]) == ours.encode(TEXTS[-1])


def test_gpt2_as_first_published_has_nothing_but_two_files(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, "gpt2"))
    backend = KINDS["gpt2"]()[0]
    assert [tokenizer.encode(t) for t in TEXTS] == [backend.encode(t).ids for t in TEXTS]
    assert tokenizer.bos_token_id == tokenizer.eos_token_ids[0] == backend.token_to_id("<|endoftext|>")


def test_tokens_added_beside_the_vocabulary_keep_their_ids(tmp_path):
    size = len(KINDS["gpt2"]()[0].get_vocab())
    more = {str(size + 1): {"content": "<tool>", "special": False}}
    tokenizer = load_tokenizer(
        write(tmp_path, "gpt2", added_tokens={"<|im_end|>": size}, tokenizer_config={"added_tokens_decoder": more})
    )
    assert (tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<tool>")) == (size, size + 1)
    assert tokenizer.encode("a<tool>")[-1] == size + 1


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        ("gpt2", {"config": {"model_type": "clip"}}, "how a 'clip' tokenizer cuts text is not known"),
        ("bert", {"config": {"model_type": "esm"}}, "how a 'esm' tokenizer cuts text is not known"),
        ("bert", {"tokenizer_config": {"cls_token": "<nope>"}}, "'<nope>'.* not in the vocabulary"),
    ],
)
def test_what_old_files_leave_open_is_not_guessed(tmp_path, kind, files, message):
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(write(tmp_path, kind, **files))
    assert "save_pretrained" in caught.value.remedy


def test_damaged_old_files_are_named(tmp_path):
    write(tmp_path, "gpt2")
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"vocab\.json or merges.txt is damaged"):
        load_tokenizer(tmp_path)


def test_roles_named_in_the_configuration_alone_are_special(tmp_path):
    backend, _ = KINDS["gpt2"]()
    spec = json.loads(backend.to_str()) | {"added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special_token_ids == {backend.token_to_id("<|endoftext|>")}
    assert tokenizer.decode([*tokenizer.special_token_ids]) == ""


def test_the_model_names_the_end_where_no_generation_config_does(tmp_path):
    write(tmp_path, "gpt2", config={"model_type": "gpt2", "eos_token_id": 7})
    assert load_tokenizer(tmp_path).eos_token_ids == (0, 7)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert load_tokenizer(tmp_path).eos_token_ids == (0, 5)
