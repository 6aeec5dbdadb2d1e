"""A scripted engine behind a real loopback server."""

import json
from pathlib import Path

import openai
import pytest
from scripted_engine import REPLY, ScriptedEngine

from lmworks.server.config import AppConfig
from lmworks.server.serve import listen, run_in_background
from lmworks.server.served_model import ServedModel
from lmworks.tokenization import Tokenizer, load_tokenizer
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    corpus = tmp_path_factory.mktemp("corpus")
    rows = [{"id": str(i), "text": f"{REPLY} {i}", "source": "t", "license": "t"} for i in range(40)]
    for split in ("train", "validation"):
        (corpus / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path_factory.mktemp("tokenizers") / "small"
    train_tokenizer(TokenizerConfig(corpus=corpus, output=output, vocab_size=280))
    return output


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture
def engine(tokenizer) -> ScriptedEngine:
    return ScriptedEngine(tokenizer)


@pytest.fixture
def base_engine(tokenizer) -> ScriptedEngine:
    """An engine whose tokenizer has no chat template."""

    class Plain:
        chat_template = None

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    return ScriptedEngine(Plain(), " and so on.")


@pytest.fixture
def start(engine, base_engine, tmp_path):
    """Start a server with the application settings given; all are stopped at the end."""
    running, listeners = [], []

    def go(**settings):
        listeners.append(listen("127.0.0.1", 0))
        models = {
            "talker": ServedModel("talker", engine, tmp_path / "talker", "abcdef0123456789"),
            "base": ServedModel("base", base_engine),
        }
        running.append(run_in_background(models, AppConfig(**settings), listeners[-1]))
        return running[-1]

    yield go
    for server in running:
        server.stop()
    for listener in listeners:
        listener.close()


@pytest.fixture
def journal(tmp_path) -> Path:
    return tmp_path / "runs" / "responses.jsonl"


@pytest.fixture
def url(start, journal) -> str:
    return start(journal=journal).url


@pytest.fixture
def client(url):
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=20, _strict_response_validation=True
    ) as client:
        yield client
