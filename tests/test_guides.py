"""Everything that the guides to serving show runs as it reads: commands, requests by curl, code, settings."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from tiny_tokenizers import save

from lmworks.adapters import LoraConfig, inject_lora, save_adapter
from lmworks.cli.main import cli
from lmworks.engine import AsyncLLM
from lmworks.engine.config import EngineConfig
from lmworks.models.hub import load_pretrained
from lmworks.proofs import reference
from lmworks.proofs.cases.case import Case
from lmworks.server import serve as server
from lmworks.server.config import AppConfig, ServeConfig
from lmworks.server.served_model import ServedModel

GUIDES = Path(__file__).resolve().parents[1] / "docs/guides"
SERVING = ("serving", "requests", "structured-output", "embedding-and-rerank", "adapters", "operating",
           "speed-and-memory", "offline-inference", "quantized-models", "instruction-data")  # fmt: skip
HOME = "http://127.0.0.1:8000"
FENCE = re.compile(r"```(sh|python|yaml)\n(.*?)```", re.DOTALL)
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}Answer in <tool_call></tool_call>.{% endif %}"
    "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": True}  # fmt: skip
BERT = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "num_labels": 1}
MODELS = {
    "SmolLM2-135M-Instruct": ("llama3", Case("llama", "", LLAMA, "LlamaForCausalLM"), 0),
    "SmolLM2-135M-Instruct-v2": ("llama3", Case("llama", "", LLAMA, "LlamaForCausalLM"), 1),
    "runs/life/chat": ("llama3", Case("llama", "", LLAMA, "LlamaForCausalLM"), 2),
    "all-MiniLM-L6-v2": ("bert", Case("bert", "", BERT, "BertModel"), 0),
    "ms-marco-MiniLM-L6-v2": ("bert", Case("bert", "", BERT, "BertForSequenceClassification"), 0),
}
"""Folders that the guides name, as tiny random models: kind of tokenizer, model, seed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader of the guides would stand."""
    here = tmp_path_factory.mktemp("guides")
    for name, (kind, case, seed) in MODELS.items():
        save(kind, here / name, TEMPLATE if kind == "llama3" else None)
        tokenizer = reference.transformers().AutoTokenizer.from_pretrained(here / name)
        ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
        sized = replace(case, config={**case.config, **ids, "vocab_size": len(tokenizer)})
        model = reference.build(sized, seed=seed)
        model.save_pretrained(here / name)
    config = LoraConfig(r=2)
    model = inject_lora(load_pretrained(here / "SmolLM2-135M-Instruct"), config, seed=0)
    save_adapter(model, config, here / "adapters/polite", rename=lambda name: name.replace("decoder.", "model."))
    return here


@pytest.fixture(scope="module")
def urls(folder: Path) -> Iterator[dict[str, str]]:
    """Servers by the guides that talk to them: one model each for what changes it, else two."""
    settings = AppConfig(admin_api_key="change-me", files_folder=folder / "batches")
    with ExitStack() as stack:
        models = {}
        for name, path in {
            "smol": "SmolLM2-135M-Instruct",
            "minilm": "all-MiniLM-L6-v2",
            "judge": "ms-marco-MiniLM-L6-v2",
        }.items():
            llm = AsyncLLM(folder / path, config=EngineConfig(num_kv_blocks=256))
            stack.callback(llm.shutdown)
            models[name] = ServedModel(name, llm)
        found = {}
        for guide, served in {"": models, "adapters": {"smol": models["smol"]}}.items():
            listener = stack.enter_context(server.listen("127.0.0.1", 0))
            found[guide] = stack.enter_context(server.run_in_background(served, settings, listener)).url
        yield found


@pytest.mark.parametrize("guide", SERVING)
def test_a_guide_runs_as_it_reads(
    guide: str, folder: Path, urls: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    url = urls.get(guide, urls[""])
    served: list[ServeConfig] = []
    monkeypatch.setattr(server, "serve", served.append)
    known: dict[str, object] = {}
    text = (GUIDES / f"{guide}.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    for kind, block in FENCE.findall(text):
        if kind == "yaml":
            name = block.splitlines()[0].removeprefix("# ")
            Path(name).write_text(block, encoding="utf-8")
            assert CliRunner().invoke(cli, ["serve", "--config", name]).exit_code == 0, name
        elif kind == "python":
            exec(block.replace(HOME, url), known)
        else:
            for command in block.replace("\\\n", " ").splitlines():
                run(command.replace(HOME, url))
    if "print(" in text:
        assert capsys.readouterr().out.strip()


def run(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "lmworks":
        result = CliRunner().invoke(cli, words[1:])
        assert result.exit_code == 0, (command, result.output, result.exception)
    elif words[0] == "curl":
        reply = curl(words[1:])
        assert reply.status_code == 200, (command, reply.text)
    else:
        assert words[:2] == ["pip", "install"], f"{command!r} is run nowhere"


def curl(words: list[str]) -> httpx.Response:
    """The few of curl's options that the guides use."""
    address, *options = words
    headers, body, method = {}, None, "GET"
    while options:
        match options.pop(0), options.pop(0):
            case "-H", header:
                name, _, value = header.partition(": ")
                headers[name] = value
            case "-d", data:
                method, body = "POST", data
                json.loads(data)
            case "-X", given:
                method = given
            case option:
                raise AssertionError(f"curl {option} is not known here")
    return httpx.request(method, address, headers=headers, content=body, timeout=60)
