"""Every kind of tokenizer that can be learned, and every choice of cuts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import ConfigError, DataError
from lmworks.tokenization import load_tokenizer
from lmworks.tokenization.corpus_texts import read_texts, spread_evenly
from lmworks.tokenization.cuts import Cuts
from lmworks.tokenization.kinds import frequent_characters
from lmworks.tokenization.pretokenizers import gpt4_pattern
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer

KINDS = ("byte_bpe", "bpe", "unigram", "wordpiece", "character", "byte")
EXACT = tuple(kind for kind in KINDS if kind != "wordpiece")
SIZE = 420


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        train_tokenizer(TokenizerConfig(corpus=corpus, output=folder / kind, vocab_size=SIZE, kind=kind))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_reads_as_transformers_reads_its_folder(trained, kind):
    from transformers import AutoTokenizer

    mine, oracle = load_tokenizer(trained / kind), AutoTokenizer.from_pretrained(trained / kind)
    for text in ("The quick brown fox 12345", "naïve 中文 x = {1: 2}\n\n    y", "", "never seen: ж 한국 🎉"):
        ids = mine.encode(text)
        assert ids == oracle(text, add_special_tokens=False)["input_ids"]
        if kind != "unigram":  # `transformers` strips the space that Metaspace may have put before a text
            assert mine.decode(ids) == oracle.decode(ids, skip_special_tokens=True)
    assert mine.vocab_size <= SIZE
    assert [mine.token_id(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    assert len(mine.special_tokens) == 3 + (kind not in ("byte_bpe", "byte"))


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40))
def test_every_text_comes_back(trained, kind, text):
    tokenizer = load_tokenizer(trained / kind) if kind not in _LOADED else _LOADED[kind]
    _LOADED[kind] = tokenizer
    for shown in (text, f"<0x0A>{text}<unk> <|im_end|>"):
        ids = tokenizer.encode(shown)
        assert tokenizer.decode(ids) == shown
        assert not set(ids) & tokenizer.special_token_ids


_LOADED: dict = {}


def test_the_simplest_kinds_merge_nothing(trained):
    letters, octets = load_tokenizer(trained / "character"), load_tokenizer(trained / "byte")
    text = "The dog 明月 \t"
    assert [letters.token_bytes(i).decode() for i in letters.encode(text)] == list(text)
    assert [octets.token_bytes(i) for i in octets.encode(text)] == [bytes([b]) for b in text.encode()]
    assert octets.vocab_size == 3 + 256


def test_rare_characters_are_bytes(trained):
    tokenizer = load_tokenizer(trained / "bpe")
    assert b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode("ж")) == "ж".encode()
    assert len(tokenizer.encode("ж")) == 2


def test_another_process_learns_the_same_bytes(corpus, trained, tmp_path):
    """Hash maps of the library are visited in another order in each process."""
    code = (
        "import sys; from lmworks.tokenization.training import *\n"
        "corpus, output, size, *kinds = sys.argv[1:]\n"
        "for kind in kinds:\n"
        "    settings = dict(corpus=corpus, output=output + '/' + kind, vocab_size=size, kind=kind)\n"
        "    train_tokenizer(TokenizerConfig.parse(settings))"
    )
    settings = [str(corpus), str(tmp_path), str(SIZE), *KINDS]
    subprocess.run([sys.executable, "-c", code, *settings], check=True, timeout=60)
    for kind in KINDS:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / kind / file).read_bytes() == (trained / kind / file).read_bytes(), kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_without_text_is_named_by_every_kind(tmp_path, kind):
    (tmp_path / "train.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="holds no text"):
        train_tokenizer(TokenizerConfig(corpus=tmp_path, output=tmp_path / "t", kind=kind))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "bpe", "vocab_size": 259}, "at least 260"),
        ({"kind": "wordpiece", "cjk": "runs"}, "as BERT does"),
        ({"kind": "unigram", "special_tokens": ["<unk>"]}, "leave it out"),
        ({"kind": "unigramm"}, "kind"),
    ],
)
def test_what_a_kind_cannot_do_is_refused(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        TokenizerConfig.parse({"corpus": tmp_path, "output": tmp_path / "t", **fields})


@pytest.mark.parametrize(
    ("cuts", "text", "pieces"),
    [
        (Cuts(max_digits=3), "a1234567", ["a", "123", "456", "7"]),
        (Cuts(max_digits=1), "12", ["1", "2"]),
        (Cuts(max_digits=9), "1234567890", ["123456789", "0"]),
        (Cuts(), "use中文字，好the end", ["use中文字", "，好the", " end"]),
        (Cuts(cjk="runs"), "use中文字，好the end", ["use", "中文字", "，", "好", "the", " end"]),
        (Cuts(cjk="characters"), "use中文字 ひら", ["use", "中", "文", "字", " ", "ひ", "ら"]),
        (Cuts(), "\n    if x:\n", ["\n", "   ", " if", " x", ":\n"]),
        (Cuts(whitespace="characters"), "\n   if x", ["\n", " ", " ", " if", " x"]),
        (Cuts(split_case=True), "parseHTTPHeader get_aB Über", ["parse", "HTTP", "Header", " get", "_a", "B", " Über"]),
        (Cuts(split_case=True, cjk="runs"), "aB中文Cd", ["a", "B", "中文", "Cd"]),
    ],
)  # fmt: skip
def test_text_is_cut_where_it_was_asked(cuts, text, pieces):
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(cuts.pattern), "isolated")
    assert [piece for piece, _ in split.pre_tokenize_str(text)] == pieces


@pytest.mark.parametrize("digits", [1, 3])
def test_the_default_cuts_are_the_gpt4_familys(digits):
    assert Cuts(max_digits=digits).pattern == gpt4_pattern(digits)


def test_the_most_frequent_characters_are_found():
    assert frequent_characters(iter(["abba", "c😀😀😀", ""]), 2) == ["a", "😀"]
    assert frequent_characters(iter([]), 3) == []


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=60), wanted=st.integers(1, 800))
def test_a_sample_is_spread_evenly(sizes, wanted):
    lines = [b"x" * size for size in sizes]
    total = sum(sizes)
    sample = list(spread_evenly(lines, total, wanted))
    taken = sum(len(line) for _, line in sample)
    assert all(lines[number - 1] == line for number, line in sample)
    if wanted >= total:
        assert len(sample) == len(lines)
    else:
        assert wanted - 2 * max(sizes) <= taken <= wanted + max(sizes)


def test_a_sample_of_a_corpus_bounds_what_is_read(tmp_path):
    rows = [json.dumps({"text": f"document {i} " * 5}) for i in range(400)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    texts = list(read_texts(tmp_path / "train.jsonl", 4000))
    assert 40 < len(texts) < 60
    assert "document 39" in texts[-1]
    config = TokenizerConfig(corpus=tmp_path, output=tmp_path / "t", vocab_size=300, sample_bytes=4000)
    assert train_tokenizer(config).metrics["train_bytes"] == sum(map(len, texts))


def test_empty_lines_are_no_documents(tmp_path):
    (tmp_path / "train.jsonl").write_text('\n{"text": "a"}\n  \n\n{"text": "b"}\n\n')
    assert list(read_texts(tmp_path / "train.jsonl")) == ["a", "b"]


@pytest.mark.parametrize("kind", ["byte_bpe", "unigram", "byte"])
def test_a_corpus_that_gives_fewer_tokens_is_reported(tmp_path, capsys, kind):
    (tmp_path / "train.jsonl").write_text('{"text": "ab ab"}\n')
    train_tokenizer(TokenizerConfig(corpus=tmp_path, output=tmp_path / "t", vocab_size=5000, kind=kind))
    assert ("tokens only, not 5000" in capsys.readouterr().err) == (kind != "byte")


PEAK = """
import sys
from lmworks.tokenization.corpus_texts import spread_evenly
from lmworks.tokenization.cuts import Cuts
from lmworks.tokenization.kinds import train_spec
total, sample = int(sys.argv[1]), int(sys.argv[2])
def stream():
    made, number = 0, 0
    while made < total:
        line = " ".join(f"{(number * 64 + i) * 2654435761 % 2**40:x}" for i in range(64))
        line = line.translate(str.maketrans("0123456789", "ghijklmnop")).encode()
        made, number = made + len(line), number + 1
        yield line
train_spec("byte_bpe", lambda: (line.decode() for _, line in spread_evenly(stream(), total, sample)), 300, [], Cuts())
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux keeps it")
def test_memory_does_not_grow_with_the_stream():
    """All words of this stream are new: the worst there is for a trainer that counts words."""

    def peak(total: int, sample: int) -> int:
        command = [sys.executable, "-c", PEAK, str(total), str(sample)]
        out = subprocess.run(command, check=True, timeout=60, capture_output=True)
        return int(out.stdout)

    bounded = peak(400_000, 200_000)
    assert peak(2_000_000, 200_000) < 1.1 * bounded
    assert peak(2_000_000, 2_000_000) > 1.2 * bounded
