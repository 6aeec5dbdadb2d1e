import json
import shutil

import pytest
import torch

from lmworks.adapters import LoraConfig, load_adapter, merge_and_unload
from lmworks.core.errors import ConfigError, DataError, TokenizerError
from lmworks.core.lineage import verify
from lmworks.core.messages import Message
from lmworks.data.rows.conversations import load_conversations
from lmworks.models.build import build_model
from lmworks.models.config import ModelConfig, StackConfig
from lmworks.models.families import family_named
from lmworks.models.hub import load_pretrained, save_pretrained
from lmworks.models.slots import AttentionConfig, MLPConfig
from lmworks.nn.attention_context import PackedContext
from lmworks.tokenization import load_tokenizer
from lmworks.tokenization.training import TokenizerConfig, train_tokenizer
from lmworks.tune.sft import FineTuningOptimizer, SFTConfig, adapter_names, chat_tokenizer, sft

COLORS = ["red", "green", "blue", "gray", "pink", "gold", "teal", "lime"]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A random model with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": f"the color is {c}"}) + "\n" for c in COLORS))
    train_tokenizer(TokenizerConfig(corpus=folder, output=folder / "tokenizer", vocab_size=280))
    tokenizer = load_tokenizer(folder / "tokenizer")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        max_position_embeddings=64,
        decoder=StackConfig(
            num_hidden_layers=2,
            attention=AttentionConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=16),
            mlp=MLPConfig(intermediate_size=64),
        ),
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_ids=(0,),
    )
    save_pretrained(build_model(config, seed=0), folder / "model")
    tokenizer.save(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def conversations(tmp_path_factory):
    file = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"{n} say {c}"}, {"role": "assistant", "content": f"{c}!"}]}
        for n in range(6)
        for c in COLORS
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def settings(base, chats, output, **changes):
    values = {
        "model": base,
        "conversations": (chats,),
        "output": output,
        "batch_tokens": 256,
        "max_steps": 30,
        "epochs": 100,
        "precision": "float32",
        "optimizer": FineTuningOptimizer(lr=1e-2),
        "validation_conversations": 4,
    }
    return SFTConfig(**(values | changes))


def greedy(folder, prompt, limit=12):
    """The answer, without the engine, which is another package's."""
    model, tokenizer = load_pretrained(folder), load_tokenizer(folder)
    ids = tokenizer.encode_chat([Message(role="user", content=prompt)], add_generation_prompt=True).token_ids
    start = len(ids)
    with torch.no_grad():
        while len(ids) - start < limit and ids[-1] not in (0, 2):
            context = PackedContext(torch.tensor([0, len(ids)], dtype=torch.int32))
            hidden = model(torch.tensor(ids), torch.arange(len(ids)), context)
            ids.append(int(model.logits(hidden[-1]).argmax()))
    return tokenizer.decode(ids[start:], skip_special_tokens=False)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=8, lora_alpha=32)])
def test_a_tuned_model_answers_and_ends_its_turn(base, conversations, tmp_path, lora):
    manifest = sft(settings(base, conversations, tmp_path / "chat", lora=lora, max_steps=60 if lora is None else 150))
    verify(tmp_path / "chat")
    metrics = manifest.metrics
    assert metrics["validation_loss"] < 0.5 * metrics["validation_loss_before"]
    assert metrics["held_out_conversations"] == len(load_conversations(tmp_path / "chat" / "held_out.jsonl")) == 4
    assert (metrics["trainable_parameters"] < metrics["parameters"]) == (lora is not None)
    assert {p.role for p in manifest.parents} == {"model", "conversations.0"}
    assert greedy(tmp_path / "chat", "2 say blue").endswith("!<|im_end|>")
    assert load_tokenizer(tmp_path / "chat").eos_token_ids == (0, 2)
    assert json.loads((tmp_path / "chat" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    assert (tmp_path / "chat" / "chat_template.jinja").is_file()
    assert not (tmp_path / "chat.checkpoints").exists()


def test_the_adapter_folder_rebuilds_the_merged_model(base, conversations, tmp_path):
    config = settings(base, conversations, tmp_path / "chat", lora=LoraConfig(r=2), max_steps=3)
    sft(config)
    rebuilt = load_pretrained(base)
    names = adapter_names(rebuilt)
    load_adapter(rebuilt, tmp_path / "chat" / "adapter", rename=lambda name: names.get(name, name))
    merged = merge_and_unload(rebuilt).state_dict()
    for name, weight in load_pretrained(tmp_path / "chat").state_dict().items():
        assert torch.equal(weight, merged[name]), name


def test_the_tuned_folder_works_in_transformers(base, conversations, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sft(settings(base, conversations, tmp_path / "chat", max_steps=2))
    oracle, tokenizer = (c.from_pretrained(tmp_path / "chat") for c in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "say red"}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    ours, length = load_pretrained(tmp_path / "chat"), ids.shape[1]
    with torch.no_grad():
        context = PackedContext(torch.tensor([0, length], dtype=torch.int32))
        logits = ours.logits(ours(ids[0], torch.arange(length), context))
        torch.testing.assert_close(logits, oracle(ids).logits[0], atol=1e-4, rtol=1e-4)
    assert oracle.generation_config.eos_token_id == [0, 2]


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4, lora_dropout=0.1)])
def test_a_stopped_run_goes_on_to_the_same_bits(base, conversations, tmp_path, lora, monkeypatch):
    import lmworks.tune.sft as stage

    whole = settings(base, conversations, tmp_path / "whole", max_steps=8, checkpoint_every=3, lora=lora)
    sft(whole)

    class Killed(Exception):
        pass

    def kill(end):
        if end.step == 5:
            raise Killed
        return {}

    monkeypatch.setattr(stage, "_measure", lambda rows: kill)
    halves = whole.model_copy(update={"output": tmp_path / "halves", "eval_every": 1})
    with pytest.raises(Killed):
        sft(halves)
    assert not (tmp_path / "halves").exists()
    monkeypatch.undo()
    sft(whole.model_copy(update={"output": tmp_path / "halves"}))
    first, second = (torch_files(tmp_path / name) for name in ("whole", "halves"))
    assert first == second


def torch_files(folder):
    return (folder / "model.safetensors").read_bytes()


def test_one_changed_field_keeps_the_other_gentle_defaults():
    config = SFTConfig.parse({"model": "m", "conversations": ["c"], "output": "o", "optimizer": {"lr": 1e-4}})
    assert (config.optimizer.kind, config.optimizer.lr, config.optimizer.weight_decay) == ("adamw", 1e-4, 0.01)


def write(tmp_path, *rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return file


def test_bad_input_is_named_and_leaves_nothing(base, conversations, tmp_path):
    output = tmp_path / "chat"
    question = {"role": "user", "content": "a"}
    cases = [
        ({"conversations": (write(tmp_path, [question]),)}, DataError, "assistant"),
        ({"conversations": (tmp_path / "absent.jsonl",)}, DataError, "does not exist"),
        ({"sequence_length": 65}, ConfigError, "sequence_length = 65 exceeds the model's context of 64"),
        ({"sequence_length": 3}, DataError, "within 3 tokens"),
        ({"lora": LoraConfig(target_modules=("nope",))}, ConfigError, "'nope' names no linear layer"),
    ]
    for changes, error, message in cases:
        with pytest.raises(error, match=message):
            sft(settings(base, conversations, output, **changes))
        assert not output.exists()


def test_another_models_tokenizer_is_refused(base, conversations, tmp_path):
    model = shutil.copytree(base, tmp_path / "model")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "train.jsonl").write_text(json.dumps({"text": "many more different words than before " * 3}))
    train_tokenizer(TokenizerConfig(corpus=tmp_path / "c", output=tmp_path / "t", vocab_size=300))
    load_tokenizer(tmp_path / "t").save(model)
    with pytest.raises(TokenizerError, match="embedding rows"):
        sft(settings(model, conversations, tmp_path / "chat"))


def test_templates_that_cannot_teach_stopping_are_refused(base):
    tokenizer = load_tokenizer(base)
    assert chat_tokenizer(tokenizer).eos_token_ids == (0, 2)
    endless = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    with pytest.raises(TokenizerError, match="could not learn to stop"):
        chat_tokenizer(tokenizer.with_chat_template(endless))


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
def test_a_mixture_of_experts_is_tuned_with_its_routing_loss(base, conversations, tmp_path, lora):
    tokenizer = load_tokenizer(base)
    sizes = {"vocab_size": tokenizer.vocab_size, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
             "num_local_experts": 4, "num_experts_per_tok": 2, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
    losses = {}
    for coefficient in (0.0, 1.0):
        config = family_named("mixtral").config_from_hf(sizes | {"router_aux_loss_coef": coefficient})
        folder = tmp_path / f"experts-{coefficient}"
        save_pretrained(build_model(config, seed=0), folder)
        tokenizer.save(folder)
        output = tmp_path / f"chat-{coefficient}"
        sft(settings(folder, conversations, output, lora=lora, max_steps=2))
        first = json.loads((output / "metrics.jsonl").read_text().splitlines()[0])
        losses[coefficient] = first["loss"] - coefficient * first.get("router_aux_loss", 0.0)
        assert ("router_aux_loss" in first) == (coefficient > 0)
    assert losses[0.0] == pytest.approx(losses[1.0], rel=1e-5)
