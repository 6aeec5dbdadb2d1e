"""A small trained tokenizer and its corpus, shared by the tokenization tests."""

import json
from pathlib import Path

import pytest

from lmworks.tokenization.tokenizer import Tokenizer, load_tokenizer
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog's owner couldn't care less.",
    "def add(a: int, b: int) -> int:\n    return a + b  # 12 + 345 = 357\n\n\nprint(add(1, 2))\n",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "Mixed 中英文 text with emoji 👩‍👩‍👧 😀😀 and accents: naïve café, Ελληνικά, ١٢٣, ½.",
    "\t tabs\tand   runs of   spaces  \r\nand\r\n\r\nline ends   ",
]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for split, count in (("train", 20), ("validation", 2)):
        rows = [{"id": str(i), "text": t, "source": "t", "license": "t"} for i, t in enumerate(TEXTS * count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("tokenizers") / "small"
    train_tokenizer(TokenizerConfig(corpus=corpus, output=output, vocab_size=400))
    return output


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="session")
def oracle(tokenizer_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)
