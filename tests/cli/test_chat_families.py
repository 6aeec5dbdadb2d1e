"""`lmworks chat FOLDER` on folders that `transformers` wrote: every kind of tokenizer and model answers as there."""

from dataclasses import replace
from pathlib import Path

import openai
import pytest
import torch
from click.testing import CliRunner
from tiny_tokenizers import save

from lmworks.cli.main import cli
from lmworks.core.errors import ConfigError, RequestError
from lmworks.engine import AsyncLLM
from lmworks.proofs import reference
from lmworks.proofs.cases import all_cases
from lmworks.proofs.cases.case import Case
from lmworks.server.config import AppConfig
from lmworks.server.serve import listen, run_in_background
from lmworks.server.served_model import ServedModel

LINES = ["What is the capital of France?", "the dog's words, 床前"]
NEW = 12
GPT2 = Case("gpt2", "small", {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128}, "GPT2LMHeadModel")
CHAT = (
    "{{ bos_token }}{% for m in messages %}OPEN{{ m['role'] + '\\n' + m['content'] | trim }}CLOSE{% endfor %}"
    "{% if add_generation_prompt %}OPEN{% endif %}"
)


def folder(path: Path, family: str, kind: str, template: str | None):
    """Save a tiny random model and its tokenizer with the reference library, and return both."""
    save(kind, path, template)
    tokenizer = reference.transformers().AutoTokenizer.from_pretrained(path)
    case = next(c for c in (*all_cases(), GPT2) if c.family == family)
    own = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    model = reference.build(replace(case, config={**case.config, **own, "vocab_size": len(tokenizer) + 3}), seed=1)
    if model.can_generate():
        # No special token ends the answer at once; a broken run of byte tokens is shown otherwise here than there.
        names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        silent = [i for i, t in enumerate(names) if t.startswith("<0x") or i in tokenizer.added_tokens_decoder]
        model.get_output_embeddings().weight.data[silent] = 0
    model.save_pretrained(path)
    return model, tokenizer


def answers(model, tokenizer) -> list[str]:
    """What the reference library says to the lines, one after the other."""
    history, said = [], []
    for line in LINES:
        history.append({"role": "user", "content": line})
        if tokenizer.chat_template:
            ids = tokenizer.apply_chat_template(history, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        else:
            ids = tokenizer(line, return_tensors="pt").input_ids
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)[0]
        if model.config.is_encoder_decoder or tokenizer.chat_template:
            new = whole if model.config.is_encoder_decoder else whole[ids.shape[1] :]
            said.append(tokenizer.decode(new, skip_special_tokens=True))
        else:  # the text goes on
            before, text = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[0], whole))
            said.append(text.removeprefix(before))
        history.append({"role": "assistant", "content": said[-1]})
    return said


def run(*arguments: object, lines: str = ""):
    return CliRunner().invoke(cli, [*map(str, arguments), "--temperature", "0", "--max-tokens", str(NEW)], input=lines)


MARKS = {
    "llama3": ("<|user|>", "<|end|>"),
    "mistral": ("[INST]", "[/INST]"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
}
FAMILIES = [
    ("gpt2", "gpt2", False),
    ("gpt_neox", "gpt2", False),
    ("bloom", "gpt2", False),
    ("llama", "llama", False),
    ("llama", "llama3", True),
    ("mistral", "mistral", True),
    ("gemma", "gemma", True),
    ("qwen3", "llama3", True),
    ("phi3", "mistral", True),
    ("mixtral", "mistral", False),
    ("deepseek_v3", "deepseek", True),
    ("t5", "t5", False),
    ("bart", "bart", False),
    ("mbart", "xlm_r", False),
]


@pytest.mark.parametrize(("family", "kind", "chats"), FAMILIES, ids=[f"{f}-{k}" for f, k, _ in FAMILIES])
def test_chat_answers_as_transformers_does(tmp_path, family, kind, chats):
    template = CHAT
    for mark, text in zip(("OPEN", "CLOSE"), MARKS.get(kind, ()), strict=False):
        template = template.replace(mark, text)
    expected = answers(*folder(tmp_path, family, kind, template if chats else None))
    (tmp_path / "README.md").write_text("Extra files do no harm.")
    (tmp_path / "onnx").mkdir()
    result = run("chat", tmp_path, lines="\n".join(LINES) + "\n")
    assert result.exit_code == 0, result.output
    assert all(len(text.strip()) > 3 for text in expected)
    assert result.stdout == "".join(f"> {text}\n" for text in expected) + "> \n"


@pytest.mark.parametrize(("family", "kind"), [("llama", "llama"), ("gpt2", "gpt2"), ("t5", "t5")])
def test_generate_goes_on_from_the_prompt_or_answers_it(tmp_path, family, kind):
    model, tokenizer = folder(tmp_path, family, kind, None)
    expected = answers(model, tokenizer)[0]
    result = run("generate", tmp_path, LINES[0])
    assert result.stdout == ("" if model.config.is_encoder_decoder else LINES[0]) + expected + "\n"


def test_a_model_that_only_reads_is_refused(tmp_path):
    folder(tmp_path, "bert", "bert", None)
    result = run("chat", tmp_path, lines="Hello\n")
    assert isinstance(result.exception, ConfigError)
    assert "encoder alone and generates nothing" in str(result.exception)


def test_a_system_message_needs_a_template(tmp_path):
    folder(tmp_path, "gpt2", "gpt2", None)
    result = run("chat", tmp_path, "--system", "Be brief.", lines="Hello\n")
    assert isinstance(result.exception, RequestError)
    assert "no place for a system message" in str(result.exception)


@pytest.mark.parametrize(("family", "kind"), [("llama", "llama"), ("t5", "t5")])
def test_the_server_says_what_the_terminal_says(tmp_path, family, kind):
    expected = answers(*folder(tmp_path, family, kind, None))[0]
    llm, listener = AsyncLLM(tmp_path), listen("127.0.0.1", 0)
    server = run_in_background({"m": ServedModel("m", llm)}, AppConfig(), listener)
    try:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            asked = {"model": "m", "prompt": LINES[0], "temperature": 0, "max_tokens": NEW}
            said = [client.completions.create(**asked).choices[0].text]
            said.append(
                "".join(c.choices[0].text for c in client.completions.create(**asked, stream=True) if c.choices)
            )
            if family == "t5":
                chat = client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": LINES[0]}], temperature=0, max_tokens=NEW
                )
                said.append(chat.choices[0].message.content)
    finally:
        server.stop()
        listener.close()
        llm.shutdown()
    assert set(said) == {expected}
