"""The stage loads the embedding model that semantic deduplication names, or says that there is none."""

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lmworks.core.errors import LMWorksError
from lmworks.data.corpus.prepare import PrepareConfig
from lmworks.pipeline.stages import STAGES

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "blue", "fox", "dog", "runs", "sleeps"]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(tmp_path / "bert/tokenizer.json"))
    return tmp_path / "bert"


def test_the_named_model_embeds(tmp_path, folder):
    # Words that the model does not know are one to it, so these say the same and share no run of words.
    texts = ["red fox runs xylo", "red fox runs marimba", "blue dog sleeps green dog"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    values = {
        "inputs": [str(tmp_path / "texts.jsonl")], "output": str(tmp_path / "c"), "preset": "none",
        "validation_fraction": 0, "semantic": {"embedder": str(folder), "threshold": 0.9999, "keep": "first"},
    }  # fmt: skip
    prepare_corpus = STAGES["data prepare"].call()
    manifest = prepare_corpus(PrepareConfig.parse(values))
    rows = [json.loads(line)["text"] for line in (tmp_path / "c/train.jsonl").read_text().splitlines()]
    assert rows == [texts[0], texts[2]]
    assert manifest.metrics["semantic_duplicates"] == 1
    with pytest.raises(LMWorksError, match="nowhere"):
        prepare_corpus(PrepareConfig.parse({**values, "semantic": {"embedder": str(tmp_path / "nowhere")}}))
